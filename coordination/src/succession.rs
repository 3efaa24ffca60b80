//! Which host of a region is its head, where several may be: when one takes over that was silent, whom the
//! copies of another zone go with, and when a head steps down.
//!
//! Nothing here is needed for safety, which is the volume's: a head has the promises of four of six copies,
//! and hears of another one by theirs. What is decided here is that a head that serves is not disturbed, that
//! a region whose head is gone has another one soon, and whether a head may be moved on an operator's word.

use std::time::Duration;

/// How much later each host takes over than the one before it in the file.
pub const STAGGER: Duration = Duration::from_millis(500);

/// For how long a host stands for which too few copies come. It then follows whoever is the head by that
/// time, and stands again no sooner than any other host would.
pub const STANDS: Duration = Duration::from_secs(4);

/// The longest that a host which has stood in vain waits besides before it stands again.
pub const IN_VAIN_MAX: Duration = Duration::from_secs(60);

/// For how long a host that was seen to stand is given its turn.
pub const ITS_TURN: Duration = Duration::from_secs(1);

/// What a host could be the head with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Nothing.
    None,
    /// It was the head, and has heard of no other one since: it goes on with what it remembers, if the copies
    /// say that nobody was the head meanwhile.
    Resumes,
    /// A replica of what the last head had.
    Replica,
}

/// What a host knows that is not the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// What it could be the head with.
    pub claim: Claim,
    /// How long it has heard no head, or has been running as a host that is none.
    pub silent: Duration,
    /// How long it had heard none before it was running so: longer where it has stood in vain.
    pub before: Duration,
    /// How long ago another host was seen to stand; none where none was.
    pub another_stands: Option<Duration>,
    /// The head has said, as its last word, that it hands over to this host. It only shortens the wait.
    pub handed_over: bool,
    /// How long a head must not have been heard.
    pub after: Duration,
    /// How many hosts, but for the last head, are before it in the file.
    pub rank: u32,
}

/// Whether a host that is not the head asks the copies to make it that.
#[must_use]
pub fn stands(facts: &Facts) -> bool {
    // Whoever has stood in vain cuts off its own clients each time: less and less often.
    let after = facts.after + (facts.before / 2).min(IN_VAIN_MAX);
    match facts.claim {
        Claim::None => false,
        Claim::Resumes => facts.silent >= after,
        Claim::Replica if facts.handed_over => true,
        Claim::Replica if facts.another_stands.is_some_and(|ago| ago < ITS_TURN) => false,
        Claim::Replica => facts.silent >= after + STAGGER * facts.rank,
    }
}

/// A zone that offers its copies to a host that stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// How long its host has heard no head.
    pub silent: Duration,
    /// The last head that it heard had the data of which the replica here is a copy.
    pub same_origin: bool,
    /// Its copies have promised somebody something.
    pub has_promised: bool,
    /// The last head that its host heard has handed over to the host that is asked.
    pub handed_over: bool,
}

/// Why a zone's copies are not taken; see [`admits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Its head may be serving.
    #[error("the zone has heard its head not long ago: this host does not take its place")]
    HeardAHead,
    /// The replica may be of data that are no more.
    #[error("the zone's last head had other data than the replica here")]
    OtherOrigin,
    /// This host has nothing of what the copies are of.
    #[error("this host has nothing of the region's data, and the zone's copies are in use: it follows")]
    Empty,
}

/// Whether a host that stands takes a zone's copies. One that resumes shuts nobody out: the copies tell
/// whether another was the head. One that is started for the first time takes none that are in use.
///
/// # Errors
/// Why not.
pub fn admits(claim: Claim, after: Duration, offer: Offer) -> Result<(), NotAdmitted> {
    match claim {
        Claim::Replica if offer.silent < after && !offer.handed_over => Err(NotAdmitted::HeardAHead),
        Claim::Replica if !offer.same_origin => Err(NotAdmitted::OtherOrigin),
        Claim::None if offer.has_promised => Err(NotAdmitted::Empty),
        Claim::Replica | Claim::Resumes | Claim::None => Ok(()),
    }
}

/// What another host answers that is asked for the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Other {
    /// Nothing.
    Silent,
    /// It stands, and is after this one in the file.
    StandsAfter,
    /// It stands, and is before this one in the file.
    StandsBefore,
    /// It is the head, as far as it knows.
    Leads,
}

/// What a host knows that is the head, or stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// With what it began.
    pub claim: Claim,
    /// Its volume was open since.
    pub opened: bool,
    /// How long it has been standing or the head.
    pub since: Duration,
    /// How long it has had no write quorum of copies.
    pub without_quorum: Duration,
    /// How long a head must not have been heard before another host takes over.
    pub after: Duration,
    /// What the others answer that were asked since: the most of it.
    pub other: Other,
}

/// Whether it is of use to find out what the other hosts answer.
#[must_use]
pub fn looks_around(head: &Head) -> bool {
    match (head.opened, head.claim) {
        (false, Claim::Replica) => true,
        _ => head.without_quorum >= head.after,
    }
}

/// Whether a head, or a host that stands, is neither any more. Of two that stand the one that is later in the
/// file gives way, so that its zone's copies can go with the other.
#[must_use]
pub fn steps_down(head: &Head) -> bool {
    let stands = head.claim == Claim::Replica && !head.opened;
    let given_up = stands && head.since >= STANDS;
    let gives_way = match head.other {
        Other::Silent | Other::StandsAfter => false,
        // Of two that resume, too, but not in the first moment: its zones may be on their way.
        Other::StandsBefore => stands || !head.opened && head.without_quorum >= head.after,
        Other::Leads => looks_around(head),
    };
    given_up || gives_way
}

/// A replica that lacks more redo than this is not waited for by a head that is to move, bytes.
pub const NEAR_BYTES: u64 = 16 << 20;

/// So many copies make a volume writable.
const WRITE_QUORUM: usize = 4;

/// The host to which a head is to move, as the head knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The file has no such host.
    Unknown,
    /// The head itself.
    Itself,
    /// Another host.
    Other {
        /// The file gives it a zone, a PostgreSQL and an address to listen at.
        may_lead: bool,
        /// Its process is connected.
        connected: bool,
        /// Its replica follows the very data that the head has.
        follows: bool,
        /// How much durable redo its replica has not applied, bytes; none where it does not say.
        behind_bytes: Option<u64>,
    },
}

/// What a head knows that is to move on an operator's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The file lets several hosts be the region's head.
    pub may_move: bool,
    /// Where to.
    pub target: Target,
    /// It plays its region's part: the writer takes writes, or the standby follows.
    pub serves: bool,
    /// A promotion of a region is in progress.
    pub promoting: bool,
    /// How many copies that other hosts hold are live.
    pub copies_elsewhere: usize,
}

/// Why a head does not move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hindrance {
    /// Only the host of the region's daemon may be its head.
    Fixed,
    /// There is no such host.
    Unknown,
    /// That host may not be the head.
    Unable,
    /// That host is not connected.
    Away,
    /// Its replica does not follow.
    Apart,
    /// Its replica lacks so many bytes of redo, or nobody knows how many.
    Behind(Option<u64>),
    /// Only so many copies are live on other hosts: without this one there would be no write quorum.
    TooFewCopies(usize),
    /// A promotion goes on.
    Promoting,
    /// The head itself does not serve.
    Idle,
}

/// Whether a head may move, and has to.
///
/// # Errors
/// All that hinders it. Nothing was touched by then.
pub fn moves(facts: &Move) -> Result<bool, Vec<Hindrance>> {
    let mut found = Vec::new();
    match facts.target {
        _ if !facts.may_move => return Err(vec![Hindrance::Fixed]),
        Target::Unknown => return Err(vec![Hindrance::Unknown]),
        Target::Itself => return Ok(false),
        Target::Other { may_lead: false, .. } => return Err(vec![Hindrance::Unable]),
        Target::Other { connected: false, .. } => found.push(Hindrance::Away),
        Target::Other { follows: false, .. } => found.push(Hindrance::Apart),
        Target::Other { behind_bytes, .. } if behind_bytes.is_none_or(|bytes| bytes > NEAR_BYTES) => {
            found.push(Hindrance::Behind(behind_bytes));
        }
        Target::Other { .. } => {}
    }
    if facts.copies_elsewhere < WRITE_QUORUM {
        found.push(Hindrance::TooFewCopies(facts.copies_elsewhere));
    }
    if facts.promoting {
        found.push(Hindrance::Promoting);
    }
    if !facts.serves {
        found.push(Hindrance::Idle);
    }
    if found.is_empty() { Ok(true) } else { Err(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(3);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_host_stands_once_no_head_was_heard_and_one_after_the_other() {
        let facts = |claim, silent, rank| Facts {
            claim,
            silent: ms(silent),
            before: Duration::ZERO,
            another_stands: None,
            handed_over: false,
            after: AFTER,
            rank,
        };
        assert!(!stands(&facts(Claim::Replica, 2_999, 0)));
        assert!(stands(&facts(Claim::Replica, 3_000, 0)));
        assert!(!stands(&facts(Claim::Replica, 3_499, 1)), "the one before it is given a moment");
        assert!(stands(&facts(Claim::Replica, 3_500, 1)), "and takes its turn where that one does not");
        assert!(stands(&facts(Claim::Resumes, 3_000, 4)));
        assert!(!stands(&facts(Claim::None, 60_000, 0)), "it has nothing to go on with");
        let again = |silent, before| Facts { before: ms(before), ..facts(Claim::Replica, silent, 0) };
        assert!(!stands(&again(6_499, 7_000)) && stands(&again(6_500, 7_000)), "it has stood in vain");
        assert!(stands(&again(63_000, 3_600_000)));
        let beside = |ago| Facts { another_stands: Some(ms(ago)), ..facts(Claim::Replica, 4_000, 1) };
        assert!(!stands(&beside(999)) && stands(&beside(1_000)), "one that stands is given its turn");
    }

    #[test]
    fn a_host_to_which_the_head_hands_over_stands_at_once_and_nobody_else() {
        let told = |claim, handed_over| Facts {
            claim,
            silent: ms(0),
            before: ms(7_000),
            another_stands: Some(ms(1)),
            handed_over,
            after: AFTER,
            rank: 3,
        };
        assert!(stands(&told(Claim::Replica, true)));
        assert!(!stands(&told(Claim::Replica, false)));
        assert!(!stands(&told(Claim::None, true)), "it has nothing to lead with, whatever is said");
        assert!(!stands(&told(Claim::Resumes, true)), "what it remembers is looked into as ever");
    }

    #[test]
    fn a_head_moves_only_where_nothing_hinders_it() {
        let other = |connected, follows, behind_bytes| Target::Other {
            may_lead: true,
            connected,
            follows,
            behind_bytes,
        };
        let able = Move {
            may_move: true,
            target: other(true, true, Some(NEAR_BYTES)),
            serves: true,
            promoting: false,
            copies_elsewhere: 4,
        };
        assert_eq!(moves(&able), Ok(true));
        assert_eq!(moves(&Move { target: Target::Itself, ..able }), Ok(false), "it is there already");
        let of = |target| moves(&Move { target, ..able }).unwrap_err();
        assert_eq!(of(Target::Unknown), [Hindrance::Unknown]);
        assert_eq!(of(other(false, false, None)), [Hindrance::Away]);
        assert_eq!(of(other(true, false, Some(0))), [Hindrance::Apart]);
        assert_eq!(of(other(true, true, None)), [Hindrance::Behind(None)]);
        let far = NEAR_BYTES + 1;
        assert_eq!(of(other(true, true, Some(far))), [Hindrance::Behind(Some(far))]);
        let unable = Target::Other { may_lead: false, connected: true, follows: true, behind_bytes: Some(0) };
        assert_eq!(of(unable), [Hindrance::Unable]);
        assert_eq!(moves(&Move { may_move: false, ..able }), Err(vec![Hindrance::Fixed]));
        let all = Move { serves: false, promoting: true, copies_elsewhere: 3, ..able };
        let found = [Hindrance::TooFewCopies(3), Hindrance::Promoting, Hindrance::Idle];
        assert_eq!(moves(&all), Err(found.to_vec()), "all that hinders is said at once");
    }

    #[test]
    fn a_zone_that_heard_its_head_goes_with_nobody_else() {
        let offer = |silent, same_origin| Offer {
            silent: ms(silent),
            same_origin,
            has_promised: true,
            handed_over: false,
        };
        assert_eq!(admits(Claim::Replica, AFTER, offer(2_999, true)), Err(NotAdmitted::HeardAHead));
        assert_eq!(admits(Claim::Replica, AFTER, offer(3_000, true)), Ok(()));
        assert_eq!(admits(Claim::Replica, AFTER, offer(9_000, false)), Err(NotAdmitted::OtherOrigin));
        assert_eq!(admits(Claim::Resumes, AFTER, offer(0, false)), Ok(()), "a head that was started again");
        assert_eq!(admits(Claim::None, AFTER, offer(0, false)), Err(NotAdmitted::Empty));
        let told = |same_origin| Offer { handed_over: true, ..offer(0, same_origin) };
        assert_eq!(admits(Claim::Replica, AFTER, told(true)), Ok(()), "its head has handed over to this one");
        assert_eq!(admits(Claim::Replica, AFTER, told(false)), Err(NotAdmitted::OtherOrigin));
        assert_eq!(admits(Claim::None, AFTER, told(true)), Err(NotAdmitted::Empty));
        let new = Offer { has_promised: false, ..offer(0, false) };
        assert_eq!(admits(Claim::None, AFTER, new), Ok(()), "a region that is made");
    }

    #[test]
    fn a_head_steps_down_where_it_is_of_no_use_and_not_before() {
        let head = Head {
            claim: Claim::Replica,
            opened: true,
            since: ms(60_000),
            without_quorum: ms(0),
            after: AFTER,
            other: Other::Leads,
        };
        assert!(!steps_down(&head), "it has its quorum, whoever else answers");
        assert!(!steps_down(&Head { without_quorum: ms(2_999), ..head }));
        assert!(steps_down(&Head { without_quorum: ms(3_000), ..head }));
        for other in [Other::Silent, Other::StandsAfter, Other::StandsBefore] {
            let alone = Head { without_quorum: ms(60_000), other, ..head };
            assert!(looks_around(&alone) && !steps_down(&alone), "nobody else serves");
        }
        let stands =
            Head { opened: false, without_quorum: ms(100), since: ms(100), other: Other::Silent, ..head };
        assert!(looks_around(&stands) && !steps_down(&stands));
        assert!(!steps_down(&Head { other: Other::StandsAfter, ..stands }), "the other one gives way");
        assert!(steps_down(&Head { other: Other::StandsBefore, ..stands }));
        assert!(steps_down(&Head { other: Other::Leads, ..stands }));
        let resumes = Head { claim: Claim::Resumes, other: Other::StandsBefore, ..stands };
        assert!(!steps_down(&resumes), "the copies say whether it still is the head");
        let for_long = Head { without_quorum: AFTER, ..resumes };
        assert!(steps_down(&for_long), "two that resume do not wait for each other");
        assert!(!steps_down(&Head { other: Other::StandsAfter, ..for_long }));
        let too_long = Head { since: STANDS, ..stands };
        assert!(steps_down(&too_long), "too few copies come");
        assert!(!steps_down(&Head { claim: Claim::Resumes, ..too_long }), "there may be no other");
    }
}
