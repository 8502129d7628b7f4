//! An integration test starts a process, on a runtime with several threads.

#[tokio::test(flavor = "multi_thread")]
async fn an_integration_test_starts_a_process() {
    programs::start_one().await;
}
