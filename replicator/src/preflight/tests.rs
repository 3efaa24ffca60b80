use super::*;
use postgres::vitals::{Archive, Holder, Replay};
use proto::Lsn;

fn region() -> RegionName {
    "b".parse().unwrap()
}

fn vitals(settings: &[(&str, &str)]) -> Vitals {
    let setting = |(name, value): &(&str, &str)| ((*name).into(), ((*value).into(), "default".into()));
    Vitals { settings: settings.iter().map(setting).collect(), ..Vitals::default() }
}

fn outcomes(findings: &[Finding]) -> Vec<(Kind, Outcome)> {
    findings.iter().map(|finding| (finding.kind, finding.outcome)).collect()
}

fn of_standby(vitals: Vitals, replay: Replay, needs: Vec<Need>) -> Facts {
    Facts { vitals: Some(Vitals { replay: Some(replay), ..vitals }), needs, ..Facts::default() }
}

#[test]
fn a_paused_replay_is_resumed_unless_a_setting_paused_it() {
    let replay = Replay { paused: true, ..Replay::default() };
    let need = |least| vec![Need { setting: "max_connections", least }];
    let of = |least| {
        let facts = of_standby(vitals(&[("max_connections", "100")]), replay.clone(), need(least));
        outcomes(&of_target(&region(), &facts, Mode::Failover))
    };
    assert_eq!(of(100), [(Kind::Paused, Outcome::Mended)]);
    assert_eq!(of(150), [(Kind::Settings, Outcome::Mended)]);
}

#[test]
fn sessions_that_replay_waits_for_are_named() {
    let holders = vec![Holder { pid: 7, seconds: 60, role: "app".into(), statement: "SELECT 1".into() }; 2];
    let facts = of_standby(vitals(&[]), Replay { held: true, holders, ..Replay::default() }, vec![]);
    let found = of_target(&region(), &facts, Mode::Switchover);
    assert_eq!(outcomes(&found), [(Kind::Held, Outcome::Mended)]);
    assert!(found[0].fact.contains("process 7 of app, for 60 s") && found[0].fact.contains("1 more"));
}

#[test]
fn what_does_not_answer_refuses_whatever_is_ordered() {
    let stopped = vec![Stopped { pid: 9, title: "postgres: startup".into() }];
    let facts = Facts { stopped, silent: "no answer".into(), ..Facts::default() };
    let refused = [(Kind::Frozen, Outcome::Refused), (Kind::Silent, Outcome::Refused)];
    assert_eq!(outcomes(&of_target(&region(), &facts, Mode::Failover)), refused);
    assert_eq!(outcomes(&of_primary(&region(), &facts)), refused);
    let reported = Some(Duration::from_secs(9));
    let facts = Facts { reported, ..of_standby(vitals(&[]), Replay::default(), vec![]) };
    let found = of_target(&region(), &facts, Mode::Switchover);
    assert_eq!(outcomes(&found), [(Kind::Receiver, Outcome::Refused)]);
}

#[test]
fn an_archive_queue_that_does_not_move_refuses_and_one_that_moves_is_told() {
    let of = |waiting, oldest_seconds, failing| {
        let archive = Some(Archive { waiting, oldest_seconds, failing });
        let facts = Facts { vitals: Some(Vitals { archive, ..vitals(&[]) }), ..Facts::default() };
        outcomes(&of_primary(&region(), &facts))
    };
    assert_eq!(of(0, 0, true), []);
    assert_eq!(of(1, 1, false), [(Kind::Archive, Outcome::Told)]);
    for stuck in [of(1, 1, true), of(1, 20, false), of(100, 1, false)] {
        assert_eq!(stuck, [(Kind::Archive, Outcome::Refused)]);
    }
}

#[test]
fn a_disk_is_low_by_its_size() {
    let low = |free_bytes, total_bytes| {
        !low_disks(&[Disk { place: "/data".into(), free_bytes, total_bytes }]).is_empty()
    };
    let (mib, gib) = (1 << 20, 1 << 30);
    assert_eq!((low(95 * mib, gib), low(97 * mib, gib)), (true, false), "a small one");
    assert_eq!((low(400 * mib, 10 * gib), low(600 * mib, 10 * gib)), (true, false), "a twentieth");
    assert_eq!((low(gib - 1, 500 * gib), low(gib, 500 * gib)), (true, false), "a large one");
}

#[test]
fn a_full_disk_refuses_a_switchover_and_is_told_in_a_failover() {
    let disks = vec![Disk { place: "/data".into(), free_bytes: 1 << 20, total_bytes: 1 << 30 }];
    let facts = Facts { disks, ..Facts::default() };
    assert_eq!(outcomes(&of_target(&region(), &facts, Mode::Switchover)), [(Kind::Room, Outcome::Refused)]);
    assert_eq!(outcomes(&of_target(&region(), &facts, Mode::Failover)), [(Kind::Room, Outcome::Told)]);
    assert_eq!(outcomes(&of_primary(&region(), &facts)), [(Kind::Room, Outcome::Told)]);
}

#[test]
fn what_would_stay_down_or_cannot_be_written_is_refused_before_it_is_tried() {
    let full = vec![Disk { place: "/data".into(), free_bytes: 0, total_bytes: 1 << 30 }];
    let facts = Facts {
        cannot_start: Some("no library".into()),
        not_writable: Some("region.json: full".into()),
        disks: full,
        ..Facts::default()
    };
    let [start, files] = [Kind::Start, Kind::Files].map(|kind| (kind, Outcome::Refused));
    assert_eq!(outcomes(&of_primary(&region(), &facts)), [start, files, (Kind::Room, Outcome::Told)]);
    let of_target = of_target(&region(), &facts, Mode::Failover);
    assert_eq!(outcomes(&of_target), [(Kind::Start, Outcome::Told), files, (Kind::Room, Outcome::Told)]);
    assert!(of_target[1].action.starts_with("make room"), "{of_target:?}");
}

#[test]
fn what_undoes_durability_is_a_note() {
    let good =
        [("synchronous_standby_names", "\"replicator\""), ("synchronous_commit", "on"), ("fsync", "on")];
    assert_eq!(notes(&vitals(&good), &[], true), Vec::<String>::new());
    let bad = alarms(&vitals(&[("synchronous_standby_names", ""), ("fsync", "off")]), true);
    assert!(bad[0].starts_with("commits do not wait") && bad[1].contains("fsync is off"), "{bad:?}");
    let of_roles =
        [("app", "synchronous_commit", "off"), ("app", "work_mem", "1"), ("b", "synchronous_commit", "on")];
    let of_roles = of_roles.map(|(role, name, value)| OfRole {
        role: role.into(),
        name: name.into(),
        value: value.into(),
        ..OfRole::default()
    });
    let notes = notes(&Vitals { of_roles: of_roles.to_vec(), ..vitals(&good) }, &[], true);
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("role app: synchronous_commit is off"), "{notes:?}");
    let standby = Vitals { replay: Some(Replay::default()), of_roles: of_roles.to_vec(), ..vitals(&good) };
    assert_eq!(super::notes(&standby, &[], true), Vec::<String>::new());
}

#[test]
fn slots_of_others_are_named_with_what_they_hold_back() {
    let slot = |name: &str, active, held_bytes| Slot {
        name: name.into(),
        kind: "physical".into(),
        active,
        lost: false,
        held_bytes,
        decodes: None,
    };
    let slots = vec![slot("replicator", false, 9), slot("backup", false, 5 << 20), slot("fine", true, 5)];
    let notes = notes(&Vitals { slots, ..vitals(&[]) }, &[], false);
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("slot backup") && notes[0].contains("5.0 MiB"), "{notes:?}");
}

#[test]
fn logical_slots_are_told_with_their_consumers_and_what_becomes_of_them() {
    let decodes =
        Some(Decodes { plugin: "pgoutput".into(), database: "shop".into(), confirmed_lsn: Lsn(0x500) });
    let slot = Slot { name: "cdc".into(), kind: "logical".into(), active: true, decodes, ..Slot::default() };
    let with = |lost, major, replay| {
        let slots = vec![Slot { lost, ..slot.clone() }];
        let vitals = Some(Vitals { slots, replay, ..vitals(&[]) });
        Facts { vitals, major: Major(major), ..Facts::default() }
    };
    for (major, wanted) in [(15, "begins anew there: a new slot"), (16, "goes on with"), (17, "goes on with")]
    {
        let found = of_primary(&region(), &with(false, major, None));
        assert_eq!(outcomes(&found), [(Kind::Slot, Outcome::Told)]);
        let Finding { fact, action, .. } = &found[0];
        assert!(fact.contains("slot cdc (pgoutput of database shop, read now)"), "{fact}");
        assert!(fact.ends_with("confirmed redo up to 0/500") && action.contains(wanted), "{fact}; {action}");
    }
    for (lost, carried, wanted) in [
        (false, None, "goes on from there"),
        (false, Some(Carried::Ready), "goes on from there"),
        (false, Some(Carried::Ahead), "drops it"),
        (false, Some(Carried::Another), "drop it here"),
        (true, Some(Carried::Lost), "made anew"),
    ] {
        let carried = carried.map(|carried| ("cdc".to_owned(), carried)).into_iter().collect();
        let facts = Facts { carried, ..with(lost, 16, Some(Replay::default())) };
        let found = of_target(&region(), &facts, Mode::Failover);
        assert!(found[0].fact.contains("0/500") && found[0].action.contains(wanted), "{found:?}");
        assert_eq!(found.len(), 1);
    }
    let carried = [("other".to_owned(), Carried::Missing)].into();
    let facts = Facts { carried, ..with(false, 16, Some(Replay::default())) };
    let found = of_target(&region(), &facts, Mode::Failover);
    assert!(found.len() == 2 && found[1].fact.contains("other of the primary is not there yet"), "{found:?}");
}

#[test]
fn a_finding_is_told_whole() {
    let facts = Facts { silent: "no".into(), ..Facts::default() };
    let told = of_target(&region(), &facts, Mode::Failover)[0].told();
    assert_eq!((told.kind.as_str(), told.region.as_str()), ("postgresql_silent", "b"));
    assert_eq!(Outcome::try_from(told.outcome), Ok(Outcome::Refused));
}

#[test]
fn a_standby_that_lets_nobody_in_is_promoted_where_the_primary_is_lost_and_it_applies_redo() {
    let silent = |reported: Option<u64>| Facts {
        silent: "no answer within 5 s".into(),
        reported: reported.map(Duration::from_secs),
        ..Facts::default()
    };
    let found = |facts: &Facts, mode| outcomes(&of_target(&region(), facts, mode));
    assert_eq!(found(&silent(Some(1)), Mode::Failover), [(Kind::Silent, Outcome::Told)]);
    assert_eq!(found(&silent(Some(1)), Mode::Switchover), [(Kind::Silent, Outcome::Refused)]);
    for not in [None, Some(6)] {
        assert_eq!(found(&silent(not), Mode::Failover), [(Kind::Silent, Outcome::Refused)], "{not:?}");
    }
}

#[test]
fn what_a_machine_lacks_refuses_a_switchover_and_is_told_in_a_failover() {
    let of = |of: OfDatabase, mode| {
        let facts = Facts { databases: vec![of], ..Facts::default() };
        outcomes(&of_target(&region(), &facts, mode))
    };
    let names = || vec!["x".to_owned()];
    let libraries = || OfDatabase { libraries: names(), ..OfDatabase::default() };
    assert_eq!(of(libraries(), Mode::Switchover), [(Kind::Library, Outcome::Refused)]);
    assert_eq!(of(libraries(), Mode::Failover), [(Kind::Library, Outcome::Told)]);
    let collations = OfDatabase { collations: names(), ..OfDatabase::default() };
    assert_eq!(of(collations, Mode::Switchover), [(Kind::Collation, Outcome::Told)]);
    let unlogged = OfDatabase { unlogged: names(), ..OfDatabase::default() };
    assert_eq!(of(unlogged, Mode::Switchover), [(Kind::Unlogged, Outcome::Told)]);
}

#[test]
fn a_standby_that_waits_before_a_tablespace_cannot_lead() {
    let waits = || "the redo makes tablespace 7 in /x".to_owned();
    for mode in [Mode::Switchover, Mode::Failover] {
        let facts = Facts { waits: waits(), ..of_standby(vitals(&[]), Replay::default(), vec![]) };
        assert_eq!(outcomes(&of_target(&region(), &facts, mode)), [(Kind::Tablespace, Outcome::Refused)]);
    }
}
