use countersign::{Arguments, Client};
use futures_util::StreamExt;

/// The number of publishes in flight at once.
pub const IN_FLIGHT: usize = 64;

/// Enqueues marks until `count` of them were accepted, each with its own id as its value. A refused mark,
/// or one with an unknown outcome, is not counted: another one replaces it.
pub async fn produce_marks(
    client: Client,
    queue: String,
    list: String,
    count: usize,
) -> Vec<String> {
    futures_util::stream::iter(0..count)
        .map(|_| async {
            loop {
                let id = uuid::Uuid::new_v4().to_string();
                let arguments = Arguments::of(&(&list, &id)).unwrap();
                let mark = client.enqueue_named("demo.mark", arguments).queue(&queue).id(&id);
                if mark.await.is_ok() {
                    return id;
                }
            }
        })
        .buffer_unordered(IN_FLIGHT)
        .collect()
        .await
}
