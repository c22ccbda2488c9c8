//! The bench still works: a few seconds of it on whatever was built, held against nothing.

use everwire_bench::{Plan, measure};

#[tokio::test(flavor = "multi_thread")]
async fn every_load_is_acked_and_delivered() {
    let report = measure(Plan::smoke()).await;
    for name in ["single", "paced", "pipelined"] {
        let phase = report.phase(name).unwrap();
        let ack = phase.ack.unwrap();
        assert!(ack.count > 0 && phase.acked_per_second > 0.0, "{phase:?}");
        assert!(ack.p50 <= ack.p99 && ack.p99 <= ack.worst, "{phase:?}");
        // Nothing is acked before it is on the disk of two nodes.
        assert!(phase.syncs_per_second > 0.0, "{phase:?}");
        assert_eq!(phase.delivered.is_some(), name != "pipelined", "{phase:?}");
    }
    let object = report.object();
    assert_eq!(object["loads"].as_array().unwrap().len(), 3);
    assert_eq!(object["floors"].as_array().unwrap().len(), 3);
    assert!(report.table().contains("pipelined"));
}
