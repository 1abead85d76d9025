//! Which certificates are trusted.

use std::path::Path;
use std::process::Command;

use tokio_util::sync::CancellationToken;

use super::super::address::Addresses;
use super::super::connection::{Deadlines, Supervisor};
use super::*;

fn openssl(dir: &Path, arguments: &str) {
    let made =
        Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Creates two certificate authorities, and a certificate of the first for `localhost`.
fn certificates(dir: &Path) {
    for name in ["ca", "other"] {
        openssl(
            dir,
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
            ),
        );
    }
    openssl(
        dir,
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout server.key -out server.csr",
    );
    openssl(
        dir,
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -days 2 -copy_extensions copy -out server.pem",
    );
}

async fn attempt(host: &str, port: &str, ca: Vec<u8>) -> Result<(), String> {
    attempt_with(&format!("rediss://{host}:{port}"), Some(&ca)).await
}

async fn attempt_with(url: &str, ca: Option<&[u8]>) -> Result<(), String> {
    let supervisor = Supervisor {
        addresses: Addresses::parse(url, ca).unwrap(),
        deadlines: Deadlines { connect: SOON, command: SOON },
        closing: CancellationToken::new(),
        pushes: None,
        log_changes: false,
    };
    supervisor.connect(supervisor.addresses.pick().unwrap()).await.map(drop)
}

#[tokio::test]
async fn only_the_given_authority_and_the_right_name_are_trusted() {
    if Command::new("openssl").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "openssl is not installed");
        println!("skipped: openssl is not installed");
        return;
    }
    let dir = std::env::temp_dir().join(format!("countersign-tls-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&dir).unwrap();
    certificates(&dir);
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let port = server::free_port().to_string();
    let (ca, certificate, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
    let started = Server::start_with(&[
        "--tls-port",
        &port,
        "--tls-auth-clients",
        "no",
        "--tls-ca-cert-file",
        &ca,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
    ])
    .await;
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let (ours, other) = (read("ca.pem"), read("other.pem"));
    let Some(_server) = started else { return };

    assert_eq!(attempt("localhost", &port, ours.clone()).await, Ok(()));
    let wrong_authority = attempt("localhost", &port, other).await.unwrap_err();
    assert!(wrong_authority.contains("certificate"), "{wrong_authority}");
    let wrong_name = attempt("127.0.0.1", &port, ours).await.unwrap_err();
    assert!(wrong_name.contains("not valid for name"), "{wrong_name}");

    let by_url = |options: &str| format!("rediss://127.0.0.1:{port}{options}");
    let files = format!("rediss://localhost:{port}?ssl_cert_reqs=required&ssl_ca_certs={ca}");
    assert_eq!(attempt_with(&files, None).await, Ok(()));
    for options in ["#insecure", "?ssl_cert_reqs=CERT_NONE"] {
        assert_eq!(attempt_with(&by_url(options), None).await, Ok(()), "{options}");
    }
    assert!(attempt_with(&by_url("?ssl_cert_reqs=required"), None).await.is_err());
    let missing = format!("rediss://localhost:{port}?ssl_ca_certs={ca}.missing");
    let error = Addresses::parse(&missing, None).unwrap_err().to_string();
    assert!(error.contains("ssl_ca_certs: cannot read"), "{error}");
    std::fs::remove_dir_all(&dir).unwrap();
}
