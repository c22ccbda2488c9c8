//! `/metrics`: what docs/operations.md says is measured is measured, and nothing else; and the
//! values follow what happens.

use std::collections::{BTreeMap, BTreeSet};

use everwire_testkit::metrics::Metrics;
use everwire_testkit::root;

use crate::{Dev, RULES, assert_refused};

/// The names in the tables of the page, with their types.
fn documented() -> BTreeMap<String, String> {
    let page = std::fs::read_to_string(root().join("docs/operations.md")).expect("the page");
    let mut found = BTreeMap::new();
    for row in page.lines().filter(|line| line.starts_with("| `everwire_")) {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        let names = cells.next().expect("names");
        let kind = cells.next().expect("a type");
        let kind = kind.split(',').next().expect("a type").to_owned();
        for name in names.split(',') {
            let name = name.trim().trim_matches('`').to_owned();
            let twice = found.insert(name, kind.clone());
            assert!(twice.is_none(), "twice in the tables: {row}");
        }
    }
    found
}

#[tokio::test]
async fn metrics_are_those_of_the_tables_and_follow_what_happens() {
    let dev = Dev::start().await;
    let rules = f64::from(RULES);
    let before = Metrics::read(&dev.server.admin).await;
    dev.piped(&["publish", "s", "--run", "r"], "one\ntwo\nthree\n")
        .await;
    dev.done(&["tail", "s"]).await;
    assert_refused(
        &dev.run(&["session", "show", "nothing"]).await,
        6,
        "UNKNOWN_SESSION",
    );
    let http = everwire_testkit::Http::new(&dev.server.http);
    let refused = http.get("/v1/sessions/s/events", &[]).await;
    assert_eq!(refused.status, 401);
    let after = Metrics::read(&dev.server.admin).await;

    assert_eq!(after.types, documented(), "measured and documented");
    let families: BTreeSet<_> = before.types.keys().collect();
    assert!(families.is_subset(&after.types.keys().collect()));
    let grew = |name: &str| after.sum(name) - before.sum(name);
    // Three lines, and the beginning and the end of their message, part and run.
    let events = grew("everwire_node_publish_events_total");
    assert!(events >= 3.0, "{events}");
    assert!(grew("everwire_node_publish_bytes_total") >= 11.0);
    for name in [
        "everwire_node_commit_seconds_count",
        "everwire_node_log_sync_seconds_count",
        "everwire_node_log_sync_seconds_sum",
        "everwire_node_log_sync_bytes_total",
        "everwire_node_unflushed_bytes",
        "everwire_node_shard_committed",
        "everwire_node_refusals_total",
        "everwire_edge_refused_total",
    ] {
        assert!(grew(name) > 0.0, "{name}: {after:?}");
    }
    let buckets = after
        .values
        .get("everwire_node_log_sync_seconds_bucket{le=\"+Inf\"}");
    assert_eq!(
        buckets.copied(),
        Some(after.sum("everwire_node_log_sync_seconds_count"))
    );
    assert_eq!(after.sum("everwire_node_leads"), 16.0);
    assert_eq!(after.sum("everwire_node_shard_leads"), 16.0);
    assert_eq!(after.sum("everwire_node_holds"), 16.0);
    assert_eq!(after.sum("everwire_node_leaderless"), 0.0);
    assert_eq!(after.sum("everwire_node_metadata_leads"), 1.0);
    assert_eq!(after.sum("everwire_node_rules_known"), rules);
    assert_eq!(after.sum("everwire_node_metadata_rules"), rules);
    assert_eq!(after.sum("everwire_node_shard_rules"), 16.0 * rules);
    assert!(
        after.sum("everwire_node_disk_bytes") > after.sum("everwire_node_disk_available_bytes")
    );
    assert!(after.max("everwire_node_memory_bytes") > 0.0);
    assert!(after.max("everwire_node_memory_budget_bytes") >= 268_435_456.0);
    // Alone nobody is behind, and nobody was elected since the start.
    assert_eq!(after.sum("everwire_node_shard_lag"), 0.0);
    assert_eq!(after.sum("everwire_node_quarantines_total"), 0.0);
    assert_eq!(grew("everwire_node_elections_total"), 0.0);
}
