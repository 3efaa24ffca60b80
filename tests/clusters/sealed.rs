//! Redo at rest: nothing of it shows in the volume's directories or in what failovers kept aside, and with
//! the keys all of it is there.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use replicator_tests::{Cluster, text, until};
use sqlx::{Executor, PgConnection};
use volume::segment::{Found, HEADER_BYTES, read_record};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// What a primary says that was shut out.
const DEPOSED: &str = "this region does not lead any more";

/// What is looked for.
const TEXT: &str = "nobody-but-the-bank-may-read-this-row";

/// The programs that wrap keys turn every byte over, so that what they wrap is not the key.
fn provider(cluster: &Cluster) -> PathBuf {
    let program = cluster.file().with_file_name("turn");
    std::fs::write(&program, "#!/bin/sh\ntr '\\000-\\377' '\\200-\\377\\000-\\177'\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

async fn insert(connection: &mut PgConnection, from: i32, rows: i32) {
    let query = "INSERT INTO t SELECT g, $1 || g || md5(g::text) FROM generate_series($2, $3) g";
    let done = sqlx::query(query).bind(TEXT).bind(from).bind(from + rows - 1).execute(connection).await;
    done.unwrap();
}

async fn rows(connection: &mut PgConnection) -> i64 {
    let query = "SELECT count(*) FROM t WHERE v LIKE $1 || '%'";
    sqlx::query_scalar(query).bind(TEXT).fetch_one(connection).await.unwrap()
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// Whether the text is in a file: as it is, in whatever begins a zstd frame there, or in a segment's redo as
/// whoever has no key reads it.
fn shows(path: &Path) -> bool {
    const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    // A segment is replaced, and dropped, while it is looked at.
    let Ok(bytes) = std::fs::read(path) else { return false };
    let mut frames = (0..bytes.len().saturating_sub(4)).filter(|at| bytes[*at..].starts_with(&ZSTD));
    let in_frame = |at: usize| {
        let mut found = Vec::new();
        decompress(&mut Decoder::new().unwrap(), &bytes[at..bytes.len().min(at + (1 << 20))], &mut found);
        holds(&found, TEXT.as_bytes())
    };
    holds(&bytes, TEXT.as_bytes())
        || frames.any(in_frame)
        || holds(&redo_in(&Bytes::from(bytes.clone())), TEXT.as_bytes())
}

/// What the payloads of a segment's records decompress to, as far as they do.
fn redo_in(segment: &Bytes) -> Vec<u8> {
    let (mut redo, mut offset) = (Vec::new(), HEADER_BYTES.min(segment.len()));
    let mut decoder = Decoder::new().unwrap();
    while let Found::Record(record) = read_record(&segment.slice(offset..)) {
        offset += record.bytes.len();
        if record.batch.begins_context() {
            decoder = Decoder::new().unwrap();
        }
        decompress(&mut decoder, &record.batch.payload, &mut redo);
    }
    redo
}

/// Puts what these bytes decompress to behind `all`, as far as they do.
fn decompress(decoder: &mut Decoder<'_>, bytes: &[u8], all: &mut Vec<u8>) {
    let mut input = InBuffer::around(bytes);
    let mut piece = vec![0; 128 << 10];
    loop {
        let mut output = OutBuffer::around(&mut piece[..]);
        let before = input.pos;
        let decoded = decoder.run(&mut input, &mut output);
        let count = output.pos();
        all.extend_from_slice(&piece[..count]);
        if decoded.is_err() || count == 0 && input.pos == before {
            return;
        }
    }
}

fn shown(cluster: &Cluster, region: &str) -> Vec<PathBuf> {
    let places = ["volume", "lost"].map(|place| cluster.region(region).join(place));
    let all: Vec<PathBuf> = places.iter().flat_map(|place| files(place)).collect();
    assert!(all.iter().any(|path| path.extension().is_some_and(|e| e == "redo")), "{all:?}");
    all.into_iter().filter(|path| shows(path)).collect()
}

fn segments(cluster: &Cluster, region: &str, key: Option<&str>) -> u64 {
    let volume = cluster.volume(region);
    let uses = volume["keys"].as_array().unwrap().iter();
    let of = uses.filter(|of| of["key"].as_str() == key).map(|of| of["segments"].as_u64().unwrap());
    of.sum()
}

fn active(cluster: &Cluster, region: &str) -> String {
    cluster.volume(region)["active_key"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_shows_on_disk_and_with_the_keys_all_is_there_after_a_lost_zone_a_restart_and_a_failover() {
    let cluster = Cluster::new(2);
    cluster.configure("encryption.provider = \"file\"\n");
    // A region whose keys another one could not open: its own provider keeps them.
    let turn = provider(&cluster);
    let words = format!("[\"{}\"]", turn.display());
    cluster.configure_region(
        "eu-west",
        &format!("encryption = {{ provider = \"command\", wrap = {words}, unwrap = {words} }}"),
    );
    cluster.expect(&[DEPOSED, "copy b1", "copy b2"]);
    cluster.start();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (n int, v text)").await.unwrap();
    insert(&mut primary, 1, 20_000).await;
    cluster.until_level().await;
    for region in ["us-east", "eu-west"] {
        assert_eq!(shown(&cluster, region), Vec::<PathBuf>::new());
        assert_eq!(segments(&cluster, region, None), 0, "in the clear");
        assert!(segments(&cluster, region, Some(&active(&cluster, region))) > 0);
    }
    assert_ne!(active(&cluster, "us-east"), active(&cluster, "eu-west"));
    let key_file = std::fs::metadata(cluster.region("us-east").join("redo.keys")).unwrap();
    assert_eq!(key_file.permissions().mode() & 0o7777, 0o600);
    // Of its own key the other region has nothing, wherever it may lie.
    let ring = std::fs::read_to_string(cluster.region("us-east").join("redo.keys")).unwrap();
    let key = ring.lines().nth(1).unwrap().rsplit(' ').next().unwrap();
    let known = |path: &PathBuf| holds(&std::fs::read(path).unwrap_or_default(), key.as_bytes());
    assert!(!files(&cluster.region("eu-west")).iter().any(known));
    // A zone's copies are lost, and filled from the others.
    std::fs::remove_dir_all(cluster.region("us-east").join("volume/az-b")).unwrap();
    insert(&mut primary, 20_001, 1_000).await;
    cluster.until_whole("us-east").await;
    // All of it is sent again from the disk to a region that was down, by a process with the file's keys.
    cluster.kill("eu-west", true).await;
    cluster.kill("ap-northeast", true).await;
    insert(&mut primary, 21_001, 20_000).await;
    drop(primary);
    cluster.kill("us-east", true).await;
    cluster.start();
    cluster.until_level().await;
    cluster.assert_identical().await;
    assert_eq!(rows(&mut cluster.connect("eu-west").await).await, 41_000);
    // What a failover cuts off is kept, and shows nothing either.
    for region in ["eu-west", "ap-northeast"] {
        cluster.kill(region, true).await;
    }
    let mut primary = cluster.connect("us-east").await;
    insert(&mut primary, 50_001, 100).await;
    drop(primary);
    cluster.kill("us-east", true).await;
    for region in ["eu-west", "ap-northeast"] {
        cluster.start_region(region);
    }
    until("a secondary leads", || async {
        cluster.run(&["promote", "--region", "eu-west", "--mode", "failover"]).status.success()
    })
    .await;
    cluster.start();
    cluster.until_streams("us-east").await;
    cluster.assert_identical().await;
    assert_eq!(shown(&cluster, "us-east"), Vec::<PathBuf>::new());
    let listed = cluster.printed(&["lost", "list"]);
    let directory = listed.split_whitespace().find(|word| word.contains("/lost/epoch-")).unwrap();
    assert!(listed.contains("sealed with key"), "{listed}");
    let show = cluster.run(&["lost", "show", directory, "--records"]);
    assert!(text(&show.stdout).contains("INSERT"), "{}{}", text(&show.stdout), text(&show.stderr));
    let keys = cluster.printed(&["keys", "list", "--region", "us-east", "--json"]);
    let keys: serde_json::Value = serde_json::from_str(&keys).unwrap();
    assert_eq!(keys["keys"][0]["lost"], 1, "{keys}");
    // PostgreSQL's own files are what they were: this is said in docs/SECURITY.md, and the search finds it.
    cluster.connect("us-east").await.execute("CHECKPOINT").await.unwrap();
    assert!(files(&cluster.region("us-east").join("pgdata/base")).iter().any(|path| shows(path)));
}

#[tokio::test(flavor = "multi_thread")]
async fn sealing_is_turned_on_for_a_volume_that_there_is_and_its_key_turns_over_while_all_goes_on() {
    let cluster = Cluster::up(1);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (n int, v text)").await.unwrap();
    insert(&mut primary, 1, 1_000).await;
    cluster.until_level().await;
    drop(primary);
    // The search finds what is in the clear.
    assert!(!shown(&cluster, "us-east").is_empty());
    let off = cluster.run(&["keys", "rotate", "--region", "us-east"]);
    assert!(
        text(&off.stderr).contains("`encryption` in regions.toml turns that on"),
        "{}",
        text(&off.stderr)
    );
    assert!(cluster.run(&["down"]).status.success());
    cluster.configure("encryption.provider = \"file\"\n");
    cluster.start();
    let first = active(&cluster, "us-east");
    let mut primary = cluster.connect("us-east").await;
    insert(&mut primary, 1_001, 10_000).await;
    until("what is new is sealed, beside what was", || async {
        segments(&cluster, "us-east", None) > 0 && segments(&cluster, "us-east", Some(&first)) > 0
    })
    .await;
    let table = cluster.printed(&["volume", "status", "--region", "us-east"]);
    assert!(table.contains("in the clear") && table.contains(&format!("sealed with key {first}")), "{table}");
    // The key turns over under a load that goes on.
    let rotated = cluster.printed(&["keys", "rotate", "--region", "us-east"]);
    let second = active(&cluster, "us-east");
    assert!(rotated.contains(&second) && first != second, "{rotated}");
    insert(&mut primary, 11_001, 40_000).await;
    until("the other key is used", || async { segments(&cluster, "us-east", Some(&second)) > 0 }).await;
    let keys = cluster.printed(&["keys", "list", "--region", "us-east"]);
    assert!(keys.contains(&first) && keys.contains(&second) && keys.contains("in the clear"), "{keys}");
    // The old segments are read with the old key, by a process that has both from the file.
    drop(primary);
    cluster.kill("eu-west", true).await;
    insert(&mut cluster.connect("us-east").await, 60_001, 100).await;
    cluster.kill("us-east", true).await;
    cluster.start();
    cluster.until_level().await;
    cluster.assert_identical().await;
    // Without the file the daemon says what it needs, and touches nothing.
    assert!(cluster.run(&["down"]).status.success());
    let (file, aside) = (cluster.region("us-east").join("redo.keys"), cluster.region("us-east").join("away"));
    std::fs::rename(&file, &aside).unwrap();
    let refused = cluster.run(&["run", "--region", "us-east"]);
    let said = text(&refused.stderr) + &text(&refused.stdout);
    assert!(!refused.status.success() && said.contains("put back the file that has it"), "{said}");
    assert!(!file.exists());
    std::fs::rename(&aside, &file).unwrap();
    cluster.start();
    cluster.until_level().await;
    cluster.assert_identical().await;
    assert_eq!(rows(&mut cluster.connect("eu-west").await).await, 51_100);
    // No key is in what daemons say, nor in what they answer.
    let ring = std::fs::read_to_string(&file).unwrap();
    let said =
        cluster.logs() + &cluster.printed(&["volume", "status", "--region", "us-east", "--json"]) + &keys;
    for line in ring.lines().filter(|line| line.starts_with("key ")) {
        assert!(!said.contains(line.rsplit(' ').next().unwrap()), "a key was told");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_regions_provider_is_away_a_running_volume_goes_on_and_one_that_starts_waits_for_it() {
    let cluster = Cluster::new(1);
    let turn = provider(&cluster);
    let words = format!("[\"{}\"]", turn.display());
    cluster.configure_region(
        "us-east",
        &format!("encryption = {{ provider = \"command\", wrap = {words}, unwrap = {words} }}"),
    );
    cluster.expect(&["the provider of keys does not answer"]);
    cluster.start();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (n int, v text)").await.unwrap();
    let works = std::fs::read(&turn).unwrap();
    std::fs::write(&turn, "#!/bin/sh\necho it is away >&2; exit 1\n").unwrap();
    insert(&mut primary, 1, 1_000).await;
    let refused = cluster.run(&["keys", "rotate", "--region", "us-east"]);
    assert!(text(&refused.stderr).contains("it is away"), "{}", text(&refused.stderr));
    insert(&mut primary, 1_001, 1_000).await;
    cluster.until_level().await;
    drop(primary);
    // A region that keeps its keys elsewhere starts without it, and the region itself once it is back.
    assert!(cluster.run(&["down"]).status.success());
    cluster.start_without_waiting();
    let log = cluster.region("us-east").join("daemon.log");
    until("the daemon says what it waits for", || async {
        std::fs::read_to_string(&log).unwrap().contains("the volume is not opened without its keys")
    })
    .await;
    std::fs::write(&turn, works).unwrap();
    cluster.until_level().await;
    cluster.assert_identical().await;
    assert_eq!(rows(&mut cluster.connect("us-east").await).await, 2_000);
}
