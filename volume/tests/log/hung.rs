//! Disks that do not answer: nobody else waits for them, and they are had back.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_disk_does_not_answer_is_gone_without_and_joins_when_it_does() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, mut written, mut writer) = filled(directory.path(), 3, 20_000).await;
    drop(volume);
    // A read of this waits until somebody opens it for writing.
    let copy = CopyId::all().next().unwrap();
    let meta = directory_of(directory.path(), copy).join("copy.meta");
    let aside = meta.with_extension("aside");
    std::fs::rename(&meta, &aside).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&meta).status().unwrap().success());

    let volume = Volume::open(options(directory.path())).await.unwrap();
    let is_hung = || {
        volume.status().copies.iter().any(|status| {
            status.id == copy
                && matches!(&status.state, CopyState::Failed(why) if why.contains("has not answered"))
        })
    };
    assert!(is_hung(), "{:?}", volume.status().copies);
    written.push(writer.batch(20_000));
    volume.append(written[3].clone()).await.unwrap();
    until_durable(&volume, writer.end_lsn).await;
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);

    // The disk answers: what was asked of it first, and then all is as it was.
    let answering = meta.clone();
    let answered = std::fs::rename(&aside, meta.with_extension("new")).and_then(|()| {
        std::fs::OpenOptions::new().write(true).open(&answering).and_then(|mut fifo| {
            std::io::Write::write_all(&mut fifo, &std::fs::read(meta.with_extension("new"))?)
        })
    });
    answered.unwrap();
    std::fs::rename(meta.with_extension("new"), &meta).unwrap();
    let joined = || volume.status().copies.iter().all(|status| status.state == CopyState::Live);
    until("the copy has joined", joined).await;
    drop(volume);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chosen_copy_that_does_not_say_what_it_holds_is_not_chosen_again_and_a_lost_one_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, written, _) = filled(directory.path(), 3, 20_000).await;
    drop(volume);
    let mut copies = CopyId::all();
    let (hung, lost) = (copies.next().unwrap(), copies.nth(1).unwrap());
    // All logs end alike: that of the first copy is chosen, and asking what it holds waits for this.
    let fifo = directory_of(directory.path(), hung).join("log.2/00000002.history");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let place = directory_of(directory.path(), lost);
    std::fs::rename(&place, place.with_extension("gone")).unwrap();
    std::fs::write(&place, "no directory").unwrap();

    let volume = Volume::open(options(directory.path())).await.unwrap();
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
    // It failed before the log was chosen a second time.
    std::fs::remove_file(&place).unwrap();
    std::fs::rename(place.with_extension("gone"), &place).unwrap();
    let state = |copy| volume.status().copies.into_iter().find(|status| status.id == copy).unwrap().state;
    until("the lost copy is back", || state(lost) == CopyState::Live).await;

    drop(volume);
    // Whoever still waits for it ends.
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(options.write(true), 0o4000);
    while options.open(&fifo).is_ok() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_copy_whose_disk_hangs_is_shown_as_failed_and_is_had_back() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, mut written, mut writer) = filled(directory.path(), 3, 20_000).await;
    let copy = CopyId::all().next().unwrap();
    let state = || volume.status().copies.into_iter().find(|status| status.id == copy).unwrap().state;
    assert_eq!(state(), CopyState::Live);
    // It looks whether it has the history already, and waits for that.
    let fifo = directory_of(directory.path(), copy).join("log.2/00000002.history");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let content = format!("1\t{}\tx\n", writer.end_lsn);
    let history = TimelineHistory::parse(Timeline(2), content.as_bytes()).unwrap();
    volume.append_history(history).await.unwrap();
    written.push(writer.batch(20_000));
    volume.append(written[3].clone()).await.unwrap();
    until_durable(&volume, writer.end_lsn).await;
    until("the copy counts as failed", || matches!(state(), CopyState::Failed(_))).await;

    // The disk answers: what was asked of it first, and then it is opened again.
    drop(std::fs::OpenOptions::new().write(true).open(fifo).unwrap());
    until("the copy is back", || state() == CopyState::Live).await;
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
}
