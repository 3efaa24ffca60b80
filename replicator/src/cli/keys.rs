//! `replicator keys`: what a region's redo is sealed with at rest.

use std::time::Duration;

use proto::RegionName;
use proto::messages::{VolumeRequest, VolumeView};
use serde_json::json;
use volume::seal::KeyId;

use super::AnyResult;
use super::args::KeysAction;
use crate::config::Config;
use crate::events::show_time;
use crate::keys::{Place, Ring};
use crate::layout::{Layout, RegionLayout};
use crate::operator::Operator;
use crate::region::lost;
use crate::render::{columns, sealed_words};
use crate::units::show_bytes;

/// How long a running daemon may take to see that the file of keys is another.
const TAKEN: Duration = Duration::from_secs(15);

/// How often it is asked.
const LOOK: Duration = Duration::from_millis(200);

/// Does `action`.
pub(super) async fn run(config: Config, layout: &Layout, action: KeysAction) -> AnyResult {
    let (KeysAction::List { region, .. } | KeysAction::Rotate { region }) = &action;
    let region = region.clone();
    let own = config.region(&region).ok_or_else(|| {
        format!("there is no region '{region}' in regions.toml; there are: {}", config.region_names())
    })?;
    let places = layout.region(&region);
    let place = Place::of(own, &places);
    match action {
        KeysAction::List { json, .. } => {
            let ring = place.load()?;
            let operator = Operator::new(config, layout)?;
            let view = operator.volume(Some(region.clone()), VolumeRequest::default()).await;
            if let Err(e) = &view {
                eprintln!("which segments need a key is not known: {e}");
            }
            show(&region, &place, &ring.unwrap_or_default(), view.ok().as_ref(), &places, json)
        }
        KeysAction::Rotate { .. } => {
            let key = place.rotate().await?;
            println!("key {key} is in {}: keep a copy of that file elsewhere", place.path().display());
            let operator = Operator::new(config, layout)?;
            println!("{}", taken(&operator, &region, key).await?);
            Ok(())
        }
    }
}

/// Waits until the region's daemon uses the key; what came of it.
async fn taken(operator: &Operator, region: &RegionName, key: KeyId) -> Result<String, String> {
    let asking = async {
        loop {
            let view = operator.volume(Some(region.clone()), VolumeRequest::default()).await;
            match view {
                Ok(view) if view.active_key == key.to_string() => return Ok(view),
                Ok(_) => tokio::time::sleep(LOOK).await,
                Err(e) => return Err(e),
            }
        }
    };
    match tokio::time::timeout(TAKEN, asking).await {
        Ok(Ok(view)) => Ok(format!("{region}: {}", sealed_words(&view))),
        Ok(Err(e)) => Ok(format!("{region}: its daemon uses it from its start on ({e})")),
        Err(_) => Err(format!(
            "{region}: its daemon has not taken the key within {} s; its log says why. One that was started before `encryption` was turned on \
             takes it after a restart",
            TAKEN.as_secs()
        )),
    }
}

fn show(
    region: &RegionName,
    place: &Place,
    ring: &Ring,
    view: Option<&VolumeView>,
    places: &RegionLayout,
    json: bool,
) -> AnyResult {
    let kept = lost::list(places)?;
    let lost = |id: &str| kept.iter().filter(|(_, lost)| lost.sealed.as_deref() == Some(id)).count();
    let used = |id: &str| {
        view.map(|view| {
            let of = view.keys.iter().find(|of| of.key == id);
            of.map_or((0, 0), |of| (of.segments, of.bytes))
        })
    };
    let clear = used("");
    if json {
        let keys = ring.entries().iter().map(|entry| {
            let id = entry.id.to_string();
            let used = used(&id);
            json!({
                "key": id,
                "made_us": entry.made_us,
                "provider": entry.provider,
                "active": ring.active() == Some(entry.id),
                "segments": used.map(|(segments, _)| segments),
                "bytes": used.map(|(_, bytes)| bytes),
                "lost": lost(&id),
            })
        });
        let all = json!({
            "region": region.as_str(),
            "file": place.path(),
            "keys": keys.collect::<Vec<_>>(),
            "clear_segments": clear.map(|(segments, _)| segments),
        });
        println!("{all}");
        return Ok(());
    }
    let heads = ["Key", "Made", "Provider", "New redo", "Segments", "Size", "Kept lost writes"];
    let mut rows: Vec<Vec<String>> = vec![heads.map(str::to_owned).to_vec()];
    let counted = |used: Option<(u64, u64)>| match used {
        Some((segments, bytes)) => [segments.to_string(), show_bytes(bytes)],
        None => ["?", "?"].map(str::to_owned),
    };
    for entry in ring.entries() {
        let id = entry.id.to_string();
        let is_active = if ring.active() == Some(entry.id) { "yes" } else { "-" };
        let [segments, size] = counted(used(&id));
        let count = lost(&id).to_string();
        let made = show_time(entry.made_us);
        rows.push(vec![id, made, entry.provider.clone(), is_active.into(), segments, size, count]);
    }
    let [segments, size] = counted(clear);
    rows.push(
        ["in the clear", "-", "-", "-", &segments, &size, &lost_in_the_clear(&kept)]
            .map(str::to_owned)
            .to_vec(),
    );
    println!("Region {region}: {}\n", place.path().display());
    print!("{}", columns(&rows));
    Ok(())
}

fn lost_in_the_clear(kept: &[(std::path::PathBuf, lost::Lost)]) -> String {
    kept.iter().filter(|(_, lost)| lost.sealed.is_none()).count().to_string()
}
