//! How busy the machine is, by what the kernel counts in `/proc`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How busy the machine was, on average over a second or more.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
pub struct Machine {
    /// Processor time of programs, thousandths of what all processors have.
    #[prost(uint64, tag = "1")]
    pub cpu_user: u64,
    /// Processor time of the kernel, thousandths.
    #[prost(uint64, tag = "2")]
    pub cpu_system: u64,
    /// Processors that had nothing to do but to wait for a disk, thousandths.
    #[prost(uint64, tag = "3")]
    pub cpu_disk: u64,
    /// What the host gave to other machines instead, thousandths.
    #[prost(uint64, tag = "4")]
    pub cpu_stolen: u64,
    /// All memory, bytes.
    #[prost(uint64, tag = "5")]
    pub memory_bytes: u64,
    /// What programs could still have of it, bytes.
    #[prost(uint64, tag = "6")]
    pub memory_free_bytes: u64,
    /// Swap in use, bytes.
    #[prost(uint64, tag = "7")]
    pub swap_bytes: u64,
    /// Read from disks, bytes a second.
    #[prost(uint64, tag = "8")]
    pub disk_read_bytes: u64,
    /// Written to disks, bytes a second.
    #[prost(uint64, tag = "9")]
    pub disk_written_bytes: u64,
    /// Reads a second.
    #[prost(uint64, tag = "10")]
    pub disk_reads: u64,
    /// Writes a second.
    #[prost(uint64, tag = "11")]
    pub disk_writes: u64,
    /// For how much of the time the busiest disk had something to do, thousandths.
    #[prost(uint64, tag = "12")]
    pub disk_busy: u64,
    /// Received from networks, bytes a second, without what stays on the machine.
    #[prost(uint64, tag = "13")]
    pub network_in_bytes: u64,
    /// Sent to networks, bytes a second.
    #[prost(uint64, tag = "14")]
    pub network_out_bytes: u64,
}

/// A field of a [`Machine`].
type Field<'a> = &'a mut u64;

impl Machine {
    fn fields(&mut self) -> [Field<'_>; 14] {
        [
            &mut self.cpu_user,
            &mut self.cpu_system,
            &mut self.cpu_disk,
            &mut self.cpu_stolen,
            &mut self.memory_bytes,
            &mut self.memory_free_bytes,
            &mut self.swap_bytes,
            &mut self.disk_read_bytes,
            &mut self.disk_written_bytes,
            &mut self.disk_reads,
            &mut self.disk_writes,
            &mut self.disk_busy,
            &mut self.network_in_bytes,
            &mut self.network_out_bytes,
        ]
    }
}

/// The average of machines over time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Average {
    sums: [u128; 14],
    weight: u128,
}

impl Average {
    /// Adds what was for `seconds`.
    pub fn add(&mut self, mut machine: Machine, seconds: u32) {
        let weight = u128::from(seconds.max(1));
        for (sum, field) in self.sums.iter_mut().zip(machine.fields()) {
            *sum = sum.saturating_add(u128::from(*field).saturating_mul(weight));
        }
        self.weight = self.weight.saturating_add(weight);
    }

    /// The average; none of nothing.
    #[must_use]
    pub fn get(&self) -> Option<Machine> {
        if self.weight == 0 {
            return None;
        }
        let mut machine = Machine::default();
        for (field, sum) in machine.fields().into_iter().zip(self.sums) {
            *field = u64::try_from(sum / self.weight).unwrap_or(u64::MAX);
        }
        Some(machine)
    }
}

/// What the kernel has counted so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Ticks: user, nice, system, idle, iowait, irq, softirq, steal.
    ticks: [u64; 8],
    memory_bytes: u64,
    memory_free_bytes: u64,
    swap_bytes: u64,
    /// By disk: reads, sectors read, writes, sectors written, milliseconds busy.
    disks: BTreeMap<String, [u64; 5]>,
    network: [u64; 2],
}

/// The texts of `/proc` that a [`Reading`] is made of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Texts<'a> {
    /// `/proc/stat`.
    pub stat: &'a str,
    /// `/proc/meminfo`.
    pub meminfo: &'a str,
    /// `/proc/diskstats`.
    pub diskstats: &'a str,
    /// `/proc/net/dev`.
    pub net_dev: &'a str,
}

/// A sector of `/proc/diskstats`, bytes, whatever the disk has.
const SECTOR_BYTES: u64 = 512;

/// The most disks that are counted.
const DISKS_MAX: usize = 256;

impl Reading {
    /// Makes sense of the kernel's texts; what is not there counts as zero. `is_disk` says of a name whether
    /// it is a disk of its own, and not a part of one or made of others.
    #[must_use]
    pub fn parse(texts: Texts<'_>, is_disk: impl Fn(&str) -> bool) -> Reading {
        let mut reading = Reading::default();
        let cpu = texts.stat.lines().find_map(|line| line.strip_prefix("cpu "));
        for (tick, word) in reading.ticks.iter_mut().zip(cpu.unwrap_or_default().split_whitespace()) {
            *tick = number(word);
        }
        let memory = |name: &str| {
            let line = texts.meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()).map_or(0, number).saturating_mul(1024)
        };
        reading.memory_bytes = memory("MemTotal");
        reading.memory_free_bytes = memory("MemAvailable");
        reading.swap_bytes = memory("SwapTotal").saturating_sub(memory("SwapFree"));
        for line in texts.diskstats.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = |index: usize| words.get(index).map_or(0, |word| number(word));
            if let Some(name) = words.get(2).filter(|name| is_disk(name))
                && reading.disks.len() < DISKS_MAX
            {
                reading.disks.insert((*name).to_owned(), [at(3), at(5), at(7), at(9), at(12)]);
            }
        }
        for line in texts.net_dev.lines() {
            let Some((name, counts)) = line.split_once(':') else { continue };
            if name.trim() != "lo" {
                let mut counts = counts.split_whitespace().map(number);
                let (received, sent) = (counts.next().unwrap_or(0), counts.nth(7).unwrap_or(0));
                reading.network[0] = reading.network[0].saturating_add(received);
                reading.network[1] = reading.network[1].saturating_add(sent);
            }
        }
        reading
    }

    /// How busy the machine was since `before`, `elapsed_ms` ago. What counts less than before, as after a
    /// disk was taken away and put back, counts as nothing.
    #[must_use]
    pub fn since(&self, before: &Reading, elapsed_ms: u64) -> Machine {
        let elapsed_ms = elapsed_ms.max(1);
        let each_second = |now: u64, then: u64| now.saturating_sub(then).saturating_mul(1000) / elapsed_ms;
        let ticks: Vec<u64> =
            self.ticks.iter().zip(before.ticks).map(|(now, then)| now.saturating_sub(then)).collect();
        let all = ticks.iter().fold(0_u64, |sum, tick| sum.saturating_add(*tick)).max(1);
        let share = |of: &[usize]| {
            let sum = of.iter().fold(0_u64, |sum, index| sum.saturating_add(ticks[*index]));
            sum.saturating_mul(1000) / all
        };
        let mut machine = Machine {
            cpu_user: share(&[0, 1]),
            cpu_system: share(&[2, 5, 6]),
            cpu_disk: share(&[4]),
            cpu_stolen: share(&[7]),
            memory_bytes: self.memory_bytes,
            memory_free_bytes: self.memory_free_bytes,
            swap_bytes: self.swap_bytes,
            network_in_bytes: each_second(self.network[0], before.network[0]),
            network_out_bytes: each_second(self.network[1], before.network[1]),
            ..Machine::default()
        };
        for (name, now) in &self.disks {
            let Some(then) = before.disks.get(name) else { continue };
            let rate = |index: usize| each_second(now[index], then[index]);
            let sums = [
                (&mut machine.disk_reads, rate(0)),
                (&mut machine.disk_read_bytes, rate(1).saturating_mul(SECTOR_BYTES)),
                (&mut machine.disk_writes, rate(2)),
                (&mut machine.disk_written_bytes, rate(3).saturating_mul(SECTOR_BYTES)),
            ];
            for (sum, more) in sums {
                *sum = sum.saturating_add(more);
            }
            machine.disk_busy = machine.disk_busy.max(rate(4).min(1000));
        }
        machine
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or(0)
}

/// What the kernel has counted until now. It reads small files that are made when they are read.
#[must_use]
pub fn read() -> Reading {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let [stat, meminfo, diskstats, net_dev] =
        ["/proc/stat", "/proc/meminfo", "/proc/diskstats", "/proc/net/dev"].map(text);
    let texts = Texts { stat: &stat, meminfo: &meminfo, diskstats: &diskstats, net_dev: &net_dev };
    // A disk of its own has a device behind it; partitions are not in this directory at all.
    Reading::parse(texts, |name| std::path::Path::new("/sys/block").join(name).join("device").exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAT: &str = "cpu  100 0 50 800 40 5 5 0 0 0\ncpu0 50 0 25 400 20 2 3 0 0 0\n";
    const LATER: &str = "cpu  150 10 80 850 50 5 5 0 0 0\n";
    const DISKS: &str =
        "   8  0 sda 10 0 100 5 20 0 200 9 0 30 14\n   8  1 sda1 10 0 100 5 20 0 200 9 0 30 14\n";
    const DISKS_LATER: &str =
        "   8  0 sda 14 0 108 5 40 0 1000 9 0 530 14\n   7  0 loop0 1 1 1 1 1 1 1 1 1 1 1\n";
    const NET: &str = "Inter-| Receive\n face |bytes\n    lo: 900 1 0 0 0 0 0 0 900 1 0\n  eth0: 1000 1 0 0 0 0 0 0 500 1 0\n";
    const NET_LATER: &str = "    lo: 9000 1 0 0 0 0 0 0 9000 1 0\n  eth0: 3000 1 0 0 0 0 0 0 700 1 0\n";

    #[test]
    fn what_the_kernel_counts_is_told_by_the_second() {
        let meminfo = "MemTotal:  1000 kB\nMemAvailable:  400 kB\nSwapTotal: 10 kB\nSwapFree: 8 kB\n";
        let disk = |name: &str| name == "sda";
        let before = Reading::parse(Texts { stat: STAT, meminfo, diskstats: DISKS, net_dev: NET }, disk);
        let after = Texts { stat: LATER, meminfo, diskstats: DISKS_LATER, net_dev: NET_LATER };
        let machine = Reading::parse(after, disk).since(&before, 2000);
        let wanted = Machine {
            cpu_user: 400,
            cpu_system: 200,
            cpu_disk: 66,
            cpu_stolen: 0,
            memory_bytes: 1000 << 10,
            memory_free_bytes: 400 << 10,
            swap_bytes: 2 << 10,
            disk_reads: 2,
            disk_read_bytes: 4 * 512,
            disk_writes: 10,
            disk_written_bytes: 400 * 512,
            disk_busy: 250,
            network_in_bytes: 1000,
            network_out_bytes: 100,
        };
        assert_eq!(machine, wanted);
        let mut average = Average::default();
        assert_eq!(average.get(), None);
        average.add(machine, 1);
        average.add(Machine { cpu_user: 800, ..machine }, 3);
        assert_eq!(average.get().unwrap(), Machine { cpu_user: 700, ..machine });
    }

    #[test]
    fn this_machine_tells_something() {
        let reading = read();
        assert!(reading.memory_bytes > reading.memory_free_bytes && reading.ticks[0] > 0, "{reading:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_read(one in "[a-z0-9: \n]{0,200}", other in "cpu [0-9 ]{0,200}", ms: u64) {
            let texts = |a, b| Texts { stat: a, meminfo: b, diskstats: a, net_dev: b };
            let (one, other) = (
                Reading::parse(texts(&other, &one), |_| true),
                Reading::parse(texts(&one, &other), |_| true),
            );
            let mut average = Average::default();
            average.add(one.since(&other, ms), 7);
            average.add(other.since(&one, ms), u32::MAX);
            prop_assert!(average.get().is_some());
        }
    }
}
