use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::config::{EncryptionConfig, KeyProvider};

/// A region with its directory, and its redo sealed by `provider`.
struct Fixture {
    directory: tempfile::TempDir,
    own: RegionConfig,
}

const CLUSTER: ClusterId = ClusterId([7; 16]);

impl Fixture {
    fn new(provider: KeyProvider) -> Fixture {
        let text = "cluster = \"x\"\n[region.a]\nrole = \"primary\"\nlisten = \"127.0.0.1:7001\"\npostgres = \"127.0.0.1:7002\"\n";
        let mut own = crate::config::Config::parse(text).unwrap().regions.remove(0);
        own.encryption = Some(EncryptionConfig { provider, file: None });
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(Fixture::layout(&directory, &own).directory()).unwrap();
        Fixture { directory, own }
    }

    fn layout(directory: &tempfile::TempDir, own: &RegionConfig) -> RegionLayout {
        crate::layout::Layout::new(directory.path().to_owned()).region(&own.name)
    }

    fn places(&self) -> RegionLayout {
        Fixture::layout(&self.directory, &self.own)
    }

    fn place(&self) -> Place {
        Place::of(&self.own, &self.places())
    }

    async fn sealer(&self) -> Result<Option<Arc<Sealer>>, KeysError> {
        self.place().sealer(&self.places(), CLUSTER).await
    }

    /// Writes a segment as a copy of the volume would, sealed with the key that is used.
    fn write_segment(&self, sealer: &Sealer, begin: u64) {
        use proto::{Batch, Epoch, Lsn, Timeline};
        let batch = Batch {
            epoch: Epoch(1),
            timeline: Timeline(1),
            begin_lsn: Lsn(begin),
            end_lsn: Lsn(begin + 100),
            context_lsn: Lsn(begin),
            newest_commit_us: 1,
            redo_crc32c: 0,
            payload: Bytes::from_static(b"x"),
            ends_in_record: false,
        };
        let key = sealer.active().unwrap();
        let record = sealer.seal(key, &batch, Lsn(1), batch.begin_lsn).unwrap();
        let header = volume::segment::Header {
            cluster_id: CLUSTER,
            begin_lsn: batch.begin_lsn,
            timeline: Timeline(1),
            key: Some(key),
        };
        let log = directory_of(&self.places().volume(), CopyId(3)).join("log.2");
        std::fs::create_dir_all(&log).unwrap();
        let path = log.join(volume::segment::file_name(batch.begin_lsn));
        std::fs::write(path, [&header.encode()[..], &record].concat()).unwrap();
    }
}

/// Programs that turn every byte over: what they wrap is not the key, and they say what they are told to say.
fn command(directory: &Path, works: bool) -> KeyProvider {
    let program = directory.join("turn");
    let body =
        if works { "tr '\\000-\\377' '\\200-\\377\\000-\\177'" } else { "echo it is away >&2; exit 3" };
    std::fs::write(&program, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let words = vec![program.display().to_string()];
    KeyProvider::Command { wrap: words.clone(), unwrap: words }
}

/// The program age, as SECURITY.md says to use it: what it wraps it unwraps, and nobody does without its key.
#[tokio::test]
async fn age_wraps_a_key_and_unwraps_it() {
    let age = ["/usr/bin/age", "/usr/local/bin/age"].into_iter().find(|path| Path::new(path).exists());
    let Some(age) = age else {
        println!("not tested: there is no age (Debian: age)");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let identity = |name: &str| {
        let path = directory.path().join(name).display().to_string();
        let made = std::process::Command::new(format!("{age}-keygen")).args(["-o", &path]).output().unwrap();
        let said = String::from_utf8(made.stderr).unwrap();
        (path, said.trim().rsplit(' ').next().unwrap().to_owned())
    };
    let ((path, recipient), (other, _)) = (identity("region"), identity("other"));
    let command = |identity: &str| {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let unwrap = words(&[age, "-d", "-i", identity]);
        KeyProvider::Command { wrap: words(&[age, "-r", &recipient]), unwrap }
    };
    let fixture = Fixture::new(command(&path));
    let key = fixture.place().rotate().await.unwrap();
    assert_eq!(fixture.sealer().await.unwrap().unwrap().active(), Some(key));
    let mut without = Fixture::new(command(&other));
    without.directory = fixture.directory;
    let refused = without.sealer().await.unwrap_err().to_string();
    assert!(refused.contains("age"), "{refused}");
}

#[tokio::test]
async fn keys_are_made_added_and_read_back_and_the_file_is_its_owners_alone() {
    let fixture = Fixture::new(KeyProvider::File);
    let refused = fixture.sealer().await.unwrap_err();
    assert!(matches!(&refused, KeysError::NoFile { .. }), "{refused}");
    assert!(refused.to_string().contains("replicator keys rotate --region a"));
    make_first(&fixture.own, &fixture.places()).await.unwrap();
    let first = fixture.sealer().await.unwrap().unwrap().active().unwrap();
    make_first(&fixture.own, &fixture.places()).await.unwrap();
    assert_eq!(fixture.sealer().await.unwrap().unwrap().active(), Some(first), "there is one already");
    let second = fixture.place().rotate().await.unwrap();
    let sealer = fixture.sealer().await.unwrap().unwrap();
    assert_eq!(sealer.active(), Some(second));
    assert!(sealer.has(first) && first != second);
    let path = fixture.places().keys();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let refused = fixture.sealer().await.unwrap_err().to_string();
    assert!(refused.contains("0640") && refused.contains("chmod 0600"), "{refused}");
}

#[tokio::test]
async fn a_file_of_keys_that_was_changed_is_refused_and_what_is_in_it_is_not_said() {
    let fixture = Fixture::new(KeyProvider::File);
    fixture.place().rotate().await.unwrap();
    let path = fixture.places().keys();
    let text = std::fs::read_to_string(&path).unwrap();
    let kept = text.lines().nth(1).unwrap().rsplit(' ').next().unwrap().to_owned();
    let refused = |text: &str| Ring::parse(text).unwrap_err();
    for place in 0..text.trim_end().len() {
        let mut changed = text.clone().into_bytes();
        changed[place] ^= 1;
        let why = refused(&String::from_utf8_lossy(&changed));
        assert!(!why.contains(&kept[..8]), "byte {place}: {why}");
    }
    assert!(refused(&text[..text.len() / 2]).contains("cut short"));
    assert!(refused("replicator keys 7\n").contains("later version"));
    // A key of another id, with the right checksum: the wrong file under the right name.
    let ring = Ring::parse(&text).unwrap();
    let mut other = Ring::default();
    let id = KeyId(ring.entries()[0].id.0 ^ 1);
    other.add(Entry { id, ..ring.entries()[0].clone() });
    other.activate(id);
    private::replace(&path, other.text().as_bytes()).unwrap();
    let why = fixture.sealer().await.unwrap_err().to_string();
    assert!(why.contains(&id.to_string()) && !why.contains(&kept[..8]), "{why}");
    assert!(!format!("{other:?}").contains(&kept[..8]));
}

#[tokio::test]
async fn a_key_that_segments_need_is_asked_for_and_never_made_anew() {
    let fixture = Fixture::new(KeyProvider::File);
    let key = fixture.place().rotate().await.unwrap();
    let sealer = fixture.sealer().await.unwrap().unwrap();
    fixture.write_segment(&sealer, 100);
    let path = fixture.places().keys();
    let kept = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    make_first(&fixture.own, &fixture.places()).await.unwrap();
    assert!(!path.exists(), "another key would not open what there is");
    let refused = fixture.sealer().await.unwrap_err();
    assert!(matches!(refused, KeysError::Missing { key: missing, .. } if missing == key), "{refused}");
    // Turned off, what there is has to be read as well, and what is new is in the clear.
    let mut off = Fixture::new(KeyProvider::Off);
    off.directory = fixture.directory;
    assert!(matches!(off.sealer().await.unwrap_err(), KeysError::Missing { .. }));
    private::replace(&path, &kept).unwrap();
    let sealer = off.sealer().await.unwrap().unwrap();
    assert!(sealer.has(key) && sealer.active().is_none());
    // A region that never sealed anything needs no file.
    assert!(Fixture::new(KeyProvider::Off).sealer().await.unwrap().is_none());
}

#[tokio::test]
async fn a_program_wraps_keys_and_what_it_wrapped_is_found_in_the_segments() {
    let programs = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(command(programs.path(), true));
    let key = fixture.place().rotate().await.unwrap();
    let sealer = fixture.sealer().await.unwrap().unwrap();
    fixture.write_segment(&sealer, 100);
    let secret = sealer.active_key().unwrap().secret().to_vec();
    let path = fixture.places().keys();
    let ring = fixture.place().load().unwrap().unwrap();
    assert_ne!(ring.entries()[0].kept[..], secret[..], "it is wrapped");
    let turned: Vec<u8> = secret.iter().map(|byte| byte ^ 0x80).collect();
    assert_eq!(ring.entries()[0].kept[..], turned[..]);
    // The file is lost: the segments have the wrapped key, and its provider opens it.
    std::fs::remove_file(&path).unwrap();
    let again = fixture.sealer().await.unwrap_err().to_string();
    assert!(again.contains("keys rotate"), "which one to use is the operator's to say: {again}");
    let next = fixture.place().rotate().await.unwrap();
    let sealer = fixture.sealer().await.unwrap().unwrap();
    assert!(sealer.has(key) && sealer.active() == Some(next));
    assert!(fixture.place().load().unwrap().unwrap().has(key), "and it is in the file again");
    // While the provider is away, that is what is wrong, and not the key.
    let mut away = Fixture::new(command(programs.path(), false));
    away.directory = fixture.directory;
    let silent = away.sealer().await.unwrap_err();
    assert!(matches!(silent, KeysError::Provider(ProviderError::Silent(_))), "{silent}");
    assert!(silent.to_string().contains("it is away"), "{silent}");
    assert!(matches!(away.place().rotate().await, Err(KeysError::Provider(ProviderError::Silent(_)))));
}

#[tokio::test]
async fn a_program_that_does_not_wrap_is_refused() {
    let words = vec!["/bin/cat".to_owned()];
    let fixture = Fixture::new(KeyProvider::Command { wrap: words.clone(), unwrap: words });
    let refused = fixture.place().rotate().await.unwrap_err().to_string();
    assert!(refused.contains("does not wrap"), "{refused}");
    assert!(!fixture.places().keys().exists());
}

#[tokio::test]
async fn a_daemon_whose_provider_is_away_asks_again_until_it_is_back_or_the_daemon_is_stopped() {
    let programs = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(command(programs.path(), true));
    fixture.place().rotate().await.unwrap();
    command(programs.path(), false);
    let stop = CancellationToken::new();
    let (own, places, stopping) = (fixture.own.clone(), fixture.places(), stop.clone());
    let starting =
        runtime::task::Task::spawn("start", async move { start(&own, &places, CLUSTER, &stopping).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!starting.has_ended());
    stop.cancel();
    assert!(starting.await.unwrap().unwrap().is_none());
}
