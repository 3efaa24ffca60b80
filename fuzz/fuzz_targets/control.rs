//! What a daemon is asked and answered: the door's judgement of a first message, records of who leads, and
//! answers as they are shown.
#![no_main]

use proto::messages::{self as m, control_response::Body};
use replicator::{daemon, render, voter::wire};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let body = bytes::Bytes::copy_from_slice(data);
    let name = |text: &str| text.parse::<proto::RegionName>();
    if let (Ok(open), Ok(own)) = (proto::frame::decode::<m::Open>(body.clone()), name("us-east"))
        && let Some(purpose) = open.purpose
    {
        let names = daemon::authority::Names { own: own.clone(), regions: vec![own], witnesses: Vec::new() };
        let _ = daemon::message::check(&purpose, &names);
    }
    let Ok(m::ControlResponse { body: Some(answer) }) = proto::frame::decode(body) else { return };
    match answer {
        Body::ClusterStatus(status) => drop((render::table(&status), render::json(&status))),
        Body::Volume(view) => drop((render::volume_table(&view), render::volume_json(&view))),
        Body::Promotion(promotion) => drop((render::promotion(&promotion), render::promotion_json(&promotion))),
        Body::Granted(granted) => drop(wire::to_grant(&granted)),
        answer => drop(wire::voted(answer)),
    }
});
