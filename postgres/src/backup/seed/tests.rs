use std::os::unix::fs::symlink;

use super::*;
use crate::backup::pieces::{Leaner, Leaving};

const COMING: Coming =
    Coming { system_id: SystemId(7), total_bytes: 0, takes_inventory: true, places: Vec::new() };

fn archive(name: &str, kind: tar::EntryType) -> Bytes {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, io::empty()).unwrap();
    builder.into_inner().unwrap().into()
}

#[tokio::test]
async fn only_plain_files_inside_are_unpacked() {
    let account = Account::resolve(None).unwrap();
    for (name, kind, good) in [
        ("global", tar::EntryType::Directory, true),
        ("PG_VERSION", tar::EntryType::Regular, true),
        ("../escaped", tar::EntryType::Regular, false),
        ("/escaped", tar::EntryType::Regular, false),
        ("pg_tblspc/1", tar::EntryType::Symlink, false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("pgdata");
        let mut seed = Seed::begin(&data_dir, &account, COMING).unwrap();
        seed.write(archive(name, kind)).await.unwrap();
        let error = seed.finish().await.unwrap_err().to_string();
        assert_eq!(error.contains("pg_control"), good, "{name}: {error}");
        assert!(!directory.path().join("escaped").exists());
    }
}

/// A backup whose files hold what differs by `version`: the middle of one, all of another, and a third
/// that only version 1 has.
fn backup(version: u8) -> Bytes {
    let mut builder = tar::Builder::new(Vec::new());
    let mut put = |name: &str, content: Option<Vec<u8>>| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(if content.is_some() {
            tar::EntryType::Regular
        } else {
            tar::EntryType::Directory
        });
        header.set_size(content.as_ref().map_or(0, |content| content.len() as u64));
        builder.append_data(&mut header, name, &content.unwrap_or_default()[..]).unwrap();
    };
    let mut large: Vec<u8> = (0..400_000_u32).map(|at| (at / 3).to_le_bytes()[0]).collect();
    large[200_000] = version;
    for directory in ["base", "base/5", "global"] {
        put(directory, None);
    }
    put("base/5/1", Some(large));
    if version == 1 {
        put("base/5/2", Some(vec![1; 9]));
    }
    put("base/5/3", Some(vec![version; 70_000 + usize::from(version)]));
    put("global/pg_control", Some(7_u64.to_ne_bytes().to_vec()));
    builder.into_inner().unwrap().into()
}

/// Sends as much of `backup(version)` as `share` percent; how much of it was really sent, with what came
/// of it.
async fn send(seed: Seed, version: u8, share: usize) -> (u64, Result<Unpacked, InstanceError>) {
    let (mut seed, whole) = (seed, backup(version));
    let mut leaving = Leaving::new((*seed.inventory()).clone());
    let (mut sent, progress) = (0, seed.progress());
    let part = whole.slice(..whole.len() * share / 100);
    for at in (0..part.len()).step_by(5000) {
        let mut out = Vec::new();
        leaving.take(part.slice(at..part.len().min(at + 5000)), &mut out).unwrap();
        for leaner in out {
            match leaner {
                Leaner::Data(data) => {
                    sent += data.len() as u64;
                    seed.write(data).await.unwrap();
                }
                Leaner::Same { bytes, digest } => seed.keep(bytes, digest).await.unwrap(),
            }
        }
    }
    let finished = seed.finish().await;
    if share == 100 {
        assert_eq!(
            (progress.bytes(), progress.kept_bytes()),
            (whole.len() as u64, whole.len() as u64 - sent)
        );
    }
    (sent, finished)
}

fn begin(data_dir: &Path) -> Seed {
    Seed::begin(data_dir, &Account::resolve(None).unwrap(), COMING).unwrap()
}

fn assert_holds(data_dir: &Path, version: u8) {
    let (mut found, mut directories) = (Vec::new(), vec![data_dir.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() && !path.is_symlink() {
                true => directories.push(path),
                false => found
                    .push((path.strip_prefix(data_dir).unwrap().to_owned(), std::fs::read(&path).unwrap())),
            }
        }
    }
    let (mut reader, mut wanted, mut whole) =
        (Reader::default(), Vec::<(PathBuf, Vec<u8>)>::new(), backup(version));
    while let Some(part) = reader.next(&mut whole).unwrap() {
        match part {
            Part::File(name, _) => wanted.push((name, Vec::new())),
            Part::Content(content) => wanted.last_mut().unwrap().1.extend_from_slice(&content),
            Part::Directory(_) | Part::Whole => {}
        }
    }
    found.sort();
    wanted.sort();
    assert!(
        found == wanted,
        "{:?}",
        found.iter().map(|(name, content)| (name, content.len())).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn an_interrupted_seed_goes_on_with_what_is_right_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("pgdata");
    let (first, failed) = send(begin(&data_dir), 1, 99).await;
    assert!(failed.is_err() && first > 470_000);
    assert_eq!(remains::remains(&data_dir).map(|_| ()), Some(()));
    // What somebody did there meanwhile: rot, a link, another file, a directory where a file is to be.
    let left = data_dir.with_extension(SEEDING);
    let file = std::fs::OpenOptions::new().write(true).open(left.join("base/5/1")).unwrap();
    file.write_all_at(b"rotten", 390_000).unwrap();
    std::fs::write(directory.path().join("outside"), "theirs").unwrap();
    std::fs::remove_file(left.join("base/5/3")).unwrap();
    symlink(directory.path().join("outside"), left.join("base/5/3")).unwrap();
    std::fs::write(left.join("base/other"), "x").unwrap();
    std::fs::create_dir_all(left.join("global/pg_control/x")).unwrap();
    let (second, unpacked) = send(begin(&data_dir), 2, 100).await;
    // One piece that differs and the rotten end of one file, all of the other, headers.
    assert!((150_000..220_000).contains(&second), "{second} of {first}");
    unpacked.unwrap().install().unwrap();
    assert_holds(&data_dir, 2);
    assert_eq!(std::fs::read(directory.path().join("outside")).unwrap(), b"theirs");
    assert_eq!(remains::remains(&data_dir), None, "nothing is left");
}

#[tokio::test]
async fn older_data_of_the_same_database_serve_and_stay_until_the_seed_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("pgdata");
    send(begin(&data_dir), 1, 100).await.1.unwrap().install().unwrap();
    let (sent, failed) = send(begin(&data_dir), 2, 60).await;
    assert!(failed.is_err() && sent < 80_000, "{sent}");
    assert_holds(&data_dir, 1);
    let (sent, unpacked) = send(begin(&data_dir), 2, 100).await;
    // By now the piece that differs is there as well; the other file is new.
    assert!((70_000..90_000).contains(&sent), "{sent}");
    unpacked.unwrap().install().unwrap();
    assert_holds(&data_dir, 2);
    // Of another database nothing is taken.
    let other = Coming { system_id: SystemId(8), ..COMING };
    let seed = Seed::begin(&data_dir, &Account::resolve(None).unwrap(), other).unwrap();
    assert!(seed.inventory().is_empty());
}

#[tokio::test]
async fn what_another_database_left_is_removed_and_so_is_what_nobody_wants() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("pgdata");
    assert!(send(begin(&data_dir), 1, 99).await.1.is_err());
    assert!(!begin(&data_dir).inventory().is_empty());
    let account = Account::resolve(None).unwrap();
    // The one before lets go of it once it has ended.
    let deadline = std::time::Duration::from_secs(20);
    let other = tokio::time::timeout(deadline, async {
        loop {
            match Seed::begin(&data_dir, &account, Coming { system_id: SystemId(8), ..COMING }) {
                Ok(seed) => return seed,
                Err(e) => assert!(e.to_string().contains("still being written"), "{e}"),
            }
            tokio::task::yield_now().await;
        }
    });
    assert!(other.await.unwrap().inventory().is_empty());
    let drop = || remains::drop_remains(&data_dir, &account).unwrap();
    assert!(drop() && !drop());
    assert!(!data_dir.with_extension(SEEDING).exists());
}

#[tokio::test]
async fn a_seed_that_has_no_room_does_not_begin_and_two_do_not_write_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("pgdata");
    let account = Account::resolve(None).unwrap();
    let huge = Coming { total_bytes: u64::MAX / 2, ..COMING };
    let error = Seed::begin(&data_dir, &account, huge).unwrap_err().to_string();
    assert!(error.contains("make room"), "{error}");
    let one = begin(&data_dir);
    let error = Seed::begin(&data_dir, &account, COMING).unwrap_err().to_string();
    assert!(error.contains("still being written"), "{error}");
    drop(one);
}

#[tokio::test]
async fn what_is_said_to_be_here_and_is_not_ends_the_seed() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("pgdata");
    assert!(send(begin(&data_dir), 1, 99).await.1.is_err());
    let mut seed = begin(&data_dir);
    let inventory = seed.inventory();
    let digest = inventory.digest(Path::new("base/5/1"), 0, 65_536).unwrap();
    // Before any file; then of another piece than the next one.
    for before in [0, 4 * 512] {
        seed.write(backup(1).slice(..before)).await.unwrap();
        let mut wrong = digest;
        wrong[0] ^= 1;
        seed.keep(65_536, if before == 0 { digest } else { wrong }).await.unwrap();
        let error = seed.finish().await.unwrap_err().to_string();
        assert!(error.contains("it is not"), "{error}");
        seed = begin(&data_dir);
    }
}

/// A backup with a tablespace, whose file holds what differs by `version`.
fn backup_with_a_tablespace(version: u8) -> Bytes {
    let mut builder = tar::Builder::new(Vec::new());
    let mut put = |name: &str, content: Option<&[u8]>| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(content.map_or(tar::EntryType::Directory, |_| tar::EntryType::Regular));
        let content = content.unwrap_or_default();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
    };
    let mut large: Vec<u8> = (0..400_000_u32).map(|at| (at / 7).to_le_bytes()[0]).collect();
    large[300_000] = version;
    for directory in ["pg_tblspc", "pg_tblspc/9", "pg_tblspc/9/PG_15_1", "pg_tblspc/9/PG_15_1/5"] {
        put(directory, None);
    }
    put("pg_tblspc/9/PG_15_1/5/1", Some(&large));
    if version == 1 {
        put("pg_tblspc/9/PG_15_1/5/2", Some(&[1; 9]));
    }
    put("global", None);
    put("global/pg_control", Some(&7_u64.to_ne_bytes()));
    builder.into_inner().unwrap().into()
}

/// Sends `share` percent of it; how much was really sent, and what came of it.
async fn send_it(mut seed: Seed, version: u8, share: usize) -> (u64, Result<Unpacked, InstanceError>) {
    let whole = backup_with_a_tablespace(version);
    let (mut leaving, mut sent) = (Leaving::new((*seed.inventory()).clone()), 0);
    let mut out = Vec::new();
    leaving.take(whole.slice(..whole.len() * share / 100), &mut out).unwrap();
    for leaner in out {
        match leaner {
            Leaner::Data(data) => {
                sent += data.len() as u64;
                seed.write(data).await.unwrap();
            }
            Leaner::Same { bytes, digest } => seed.keep(bytes, digest).await.unwrap(),
        }
    }
    (sent, seed.finish().await)
}

#[tokio::test]
async fn a_tablespace_goes_to_its_place_and_goes_on_as_the_rest_does() {
    let directory = tempfile::tempdir().unwrap();
    let (account, data_dir) = (Account::resolve(None).unwrap(), directory.path().join("pgdata"));
    let make = |name: &str| {
        let path = directory.path().join(name);
        Below::make(&path, account.owner()).unwrap();
        Place { oid: 9, path }
    };
    let (place, other) = (make("place"), make("other"));
    let begin = |place: &Place| {
        let coming = Coming { places: vec![(place.clone(), 400_000)], ..COMING };
        Seed::begin(&data_dir, &account, coming).unwrap()
    };
    let file = |place: &Place, name: &str| place.path.join("PG_15_1/5").join(name);
    let seeding = |place: &Place| place.path.join(SEEDING_PLACE);
    // Cut in the middle of the tablespace.
    let (first, failed) = send_it(begin(&place), 1, 80).await;
    assert!(failed.is_err() && first > 300_000 && seeding(&place).exists() && !file(&place, "1").exists());
    // One that goes elsewhere leaves nothing in this place.
    let elsewhere = begin(&other);
    assert!(elsewhere.inventory().is_empty() && elsewhere.finish().await.is_err());
    assert!(!seeding(&place).exists() && seeding(&other).exists());
    assert!(send_it(begin(&place), 1, 80).await.1.is_err());
    let (second, unpacked) = send_it(begin(&place), 1, 100).await;
    assert!(second < first / 2, "{second} of {first}");
    unpacked.unwrap().install().unwrap();
    let link = data_dir.join("pg_tblspc/9");
    assert_eq!(std::fs::read_link(&link).unwrap(), place.path);
    assert_eq!(std::fs::read(file(&place, "2")).unwrap(), [1; 9]);
    assert!(!seeding(&place).exists() && !seeding(&other).exists());
    // The older data serve, stay until the next is whole, and are gone then.
    let seed = begin(&place);
    assert!(seed.inventory().bytes() > 400_000 && seed.finish().await.is_err());
    assert!(file(&place, "2").exists());
    let (third, unpacked) = send_it(begin(&place), 2, 100).await;
    assert!(third < 100_000, "{third}");
    unpacked.unwrap().install().unwrap();
    assert!(!file(&place, "2").exists() && std::fs::read(file(&place, "1")).unwrap()[300_000] == 2);
    // Without a claim nothing says whose the files of a tablespace are that is no more.
    for is_claimed in [false, true] {
        if is_claimed {
            send_it(begin(&place), 2, 100).await.1.unwrap().install().unwrap();
            std::fs::write(place.path.join("replicator.place"), format!("{}\n", data_dir.display())).unwrap();
        }
        send(Seed::begin(&data_dir, &account, COMING).unwrap(), 1, 100).await.1.unwrap().install().unwrap();
        assert_eq!(file(&place, "1").exists(), !is_claimed);
        assert!(!link.exists() && place.path.exists());
    }
}
