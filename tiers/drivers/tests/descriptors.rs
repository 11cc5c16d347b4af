//! Replicas are not limited by descriptors: 10,000 segments and files under `ulimit -n 1024`.

mod common;

use std::process::Command;

use common::{Place, Rig, replica, twin};
use payload_types::Tier;

const SMALL: &str = "PAYLOAD_DRIVERS_TEST_SMALL_LIMIT";

#[test]
fn given_1024_descriptors_when_10000_segments_are_made_spilled_and_dropped_then_all_of_them_work() {
    if std::env::var_os(SMALL).is_none() {
        // In a process of its own: the limit is the process's.
        let name =
            "given_1024_descriptors_when_10000_segments_are_made_spilled_and_dropped_then_all_of_them_work";
        let script = r#"ulimit -n 1024 && exec "$0" --exact "$1" --nocapture"#;
        let status = Command::new("sh")
            .args(["-c", script])
            .arg(std::env::current_exe().expect("this test"))
            .arg(name)
            .env(SMALL, "1")
            .status()
            .expect("a shell");
        assert!(status.success());
        return;
    }
    let mut place = Place::new();
    place.config.disk_capacity = Some(payload_types::ByteCount(256 << 20)); // and what is spilled is packed
    let mut rig = Rig::start(&place);
    let segments: Vec<_> = (0..10_000).map(|_| replica(Tier::Ram, 4096)).collect();
    for segment in &segments {
        rig.create(*segment).expect("created");
        rig.seal(*segment, false).expect("sealed");
    }
    assert_eq!(place.segments().len(), 10_000);
    for segment in segments.iter().step_by(100) {
        let copied = rig.copied(*segment, twin(*segment, Tier::Disk), None).expect("spilled");
        assert!(copied.extent.is_some());
    }
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("listed").count();
    assert!(descriptors < 64, "{descriptors} descriptors are open");
    // Readers hold some of them while all are dropped: what is held costs no descriptor either.
    let readers: Vec<_> = segments
        .iter()
        .take(800)
        .map(|segment| std::fs::File::open(rig.path(*segment)).expect("opened"))
        .collect();
    for segment in &segments {
        rig.detach(*segment);
    }
    for segment in &segments[800..] {
        rig.wait_until_freed(*segment);
    }
    assert_eq!(place.segments().len(), 800);
    drop(readers);
    for segment in &segments[..800] {
        rig.wait_until_freed(*segment);
    }
    assert!(place.segments().is_empty());
}
