//! A child process of a test: `role NAME ARGUMENT...`. The roles are in `roles/`.

#[tokio::main]
async fn main() {
    support::roles::play().await;
}
