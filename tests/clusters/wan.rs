//! The emulated wide-area network keeps what it promises: delay, loss, rate and order are measured against
//! its settings.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use replicator_tests::now;
use replicator_tests::wan::{Wan, Weather};

/// A network of two places, or nothing where this process may not make one.
fn wan() -> Option<Wan> {
    match Wan::new(2, 7) {
        Ok(wan) => Some(wan),
        Err(e) => {
            eprintln!(
                "SKIPPED: NOTHING WAS TESTED. The network cannot be made (it needs root and `ip`): {e}"
            );
            None
        }
    }
}

fn address(place: usize) -> SocketAddr {
    SocketAddr::from((Wan::address(place), 5000))
}

fn udp(wan: &Wan, place: usize) -> UdpSocket {
    let socket = wan.within(place, move || UdpSocket::bind(address(place)).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

/// Sends datagrams with numbers and collects those that arrive, with the time since the first left, in
/// microseconds.
fn carried(wan: &Wan, count: u32, bytes: usize, every: Duration) -> Vec<(u32, u64)> {
    let (here, there) = (udp(wan, 0), udp(wan, 1));
    let begin = now();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut arrived, mut buffer) = (Vec::new(), vec![0; 2048]);
            while let Ok((length, _)) = there.recv_from(&mut buffer) {
                assert_eq!(length, bytes);
                let number = u32::from_be_bytes(buffer[..4].try_into().unwrap());
                arrived.push((number, u64::try_from(begin.elapsed().as_micros()).unwrap()));
            }
            arrived
        });
        let mut datagram = vec![0; bytes];
        for number in 0..count {
            while begin.elapsed() < every * number {
                std::hint::spin_loop();
            }
            datagram[..4].copy_from_slice(&number.to_be_bytes());
            here.send_to(&datagram, address(1)).unwrap();
        }
        receiver.join().unwrap()
    })
}

fn set(wan: &Wan, weather: Weather) {
    wan.change(0, 1, |w| *w = weather);
}

/// A busy machine adds to what is measured, and nothing else does: the best of some tries counts. What is
/// set wrong is measured wrong each time.
fn best_of_tries(mut measure: impl FnMut() -> Result<(), String>) {
    let wrong: Vec<String> = (0..20).map_while(|_| measure().err()).collect();
    assert!(wrong.len() < 20, "each time: {wrong:#?}");
}

fn holds(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

#[test]
fn what_is_measured_is_what_was_set() {
    let Some(wan) = wan() else { return };
    // Delay, and how much a busy machine adds: half of the packets are to be near.
    let every = Duration::from_millis(2);
    let lateness = |arrived: &[(u32, u64)]| {
        let mut late: Vec<u64> = arrived.iter().map(|(n, at)| at - u64::from(*n) * 2000).collect();
        late.sort_unstable();
        late
    };
    best_of_tries(|| {
        set(&wan, Weather { delay_us: 40_000, ..Weather::default() });
        let late = lateness(&carried(&wan, 200, 100, every));
        assert_eq!(late.len(), 200, "nothing is lost");
        assert!(late[0] >= 40_000, "least {}", late[0]);
        holds(late[100] < 43_000, || format!("median {}", late[100]))
    });

    // Jitter spreads, and overtaking is visible.
    best_of_tries(|| {
        set(&wan, Weather { delay_us: 10_000, jitter_us: 20_000, overtaking: true, ..Weather::default() });
        let arrived = carried(&wan, 200, 100, every);
        let late = lateness(&arrived);
        assert!(late[0] >= 10_000 && !arrived.iter().map(|(n, _)| n).is_sorted());
        let median = late[late.len() / 2];
        holds((16_000..26_000).contains(&median), || format!("median {median}"))
    });

    // Loss of 5 % of 4,000: 200, and three standard deviations of 14.
    best_of_tries(|| {
        set(&wan, Weather { loss_ppm: 50_000, ..Weather::default() });
        let lost = 4000 - carried(&wan, 4000, 100, Duration::from_micros(100)).len();
        holds((155..=245).contains(&lost), || format!("{lost} lost"))
    });

    // A rate: 20 Mbit/s for twice as much; the queue's end is lost, the rest is spaced.
    best_of_tries(|| {
        set(&wan, Weather { rate: Some(20_000_000), queue_bytes: 50_000, ..Weather::default() });
        let _ = wan.take_waits_us(0, 1);
        let arrived = carried(&wan, 2000, 1222, Duration::from_micros(250));
        let span_us = arrived.last().unwrap().1 - arrived[0].1;
        let rate = (arrived.len() - 1) as u64 * 1250 * 8 * 1_000_000 / span_us;
        let longest = wan.take_waits_us(0, 1).last().copied().unwrap_or_default();
        let right = (19_000_000..21_500_000).contains(&rate) && (15_000..=20_500).contains(&longest);
        holds(right, || format!("{rate} bits a second, the longest wait {longest} us"))
    });

    // A cut, and after it is healed.
    set(&wan, Weather { cut: true, ..Weather::default() });
    assert_eq!(carried(&wan, 20, 100, every), []);
    set(&wan, Weather::default());
    assert_eq!(carried(&wan, 20, 100, every).len(), 20);
}

#[test]
fn tcp_passes_at_the_rate_that_is_set() {
    let Some(wan) = wan() else { return };
    wan.change_all(|w| {
        *w = Weather { delay_us: 5000, rate: Some(50_000_000), queue_bytes: 250_000, ..Weather::default() };
    });
    let listener = wan.within(1, || TcpListener::bind(address(1)).unwrap()).unwrap();
    let mut sender = wan.within(0, || TcpStream::connect(address(1)).unwrap()).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    let bytes = 10 << 20;
    best_of_tries(|| {
        let begin = now();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.write_all(&vec![7; bytes]).unwrap());
            let mut all = vec![0; bytes];
            receiver.read_exact(&mut all).unwrap();
            assert!(all.iter().all(|byte| *byte == 7));
        });
        let mbit = bytes as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e6;
        assert!(mbit < 50.0, "{mbit} Mbit/s");
        holds(mbit > 30.0, || format!("{mbit} Mbit/s"))
    });
}
