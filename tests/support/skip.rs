use std::env;

/// Reports that a test is skipped because this machine lacks what it needs. The caller then returns.
///
/// # Panics
/// Panics in CI, where the variable `CI` is set: there every test must run.
pub fn skip(lacking: &str) {
    assert!(env::var_os("CI").is_none(), "no test may be skipped in CI: {lacking}");
    eprintln!("SKIPPED: {lacking}");
}
