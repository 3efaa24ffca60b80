//! Who may ask what of whom: one table, for every stream of every daemon.
//!
//! [`rule`] is the table. It is pure: a rule that depends on what a daemon knows names a [`Condition`], and
//! the daemon says whether that holds. What is not in the table is refused. docs/PROTOCOL.md prints the table
//! as [`document`] writes it.

use std::fmt;

use proto::RegionName;
use proto::messages::{control_request, open};
use transport::Peer;

use crate::config::Config;

/// Who asks, as the certificate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// An operator's command.
    Operator,
    /// What looks on.
    Monitor,
    /// The daemon of another region of the file.
    Region,
    /// A witness of the file, other than the one that is asked.
    Witness,
    /// A holder of the certificate that the asked daemon has itself: a region's daemon and its zones'
    /// processes share one.
    Own,
    /// A node of the region that is asked.
    Node,
    /// A holder of a certificate of the cluster whose name is not in the file, or is another's there.
    Stranger,
}

impl Who {
    /// Everybody.
    pub const ALL: [Who; 7] =
        [Who::Operator, Who::Monitor, Who::Region, Who::Witness, Who::Own, Who::Node, Who::Stranger];
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A region's daemon.
    Region,
    /// A witness.
    Witness,
    /// A zone's process.
    Zone,
}

impl Asked {
    /// Everybody.
    pub const ALL: [Asked; 3] = [Asked::Region, Asked::Witness, Asked::Zone];
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Asked::Region => "a region",
            Asked::Witness => "a witness",
            Asked::Zone => "a zone's process",
        })
    }
}

/// Declares [`Request`], its names as the `.proto` has them, and which message each is.
macro_rules! requests {
    ($($(#[$about:meta])* $name:ident = $field:literal),* $(,)?) => {
        /// What is asked: a purpose of a stream, or a control request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Request {
            $($(#[$about])* $name,)*
        }

        impl Request {
            /// All that there are, in the order of the `.proto`.
            pub const ALL: &[Request] = &[$(Request::$name,)*];

            /// Its field's name in the `.proto`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Request::$name => $field,)*
                }
            }
        }
    };
}

requests! {
    /// Take the redo of the primary.
    Replicate = "replicate",
    /// Take a base backup.
    Seed = "seed",
    /// Take a zone's copies into the volume.
    Zone = "zone",
    /// Serve a copy.
    Copy = "copy",
    /// Send redo that the asker lacks.
    Gather = "gather",
    /// Rewind the data.
    Rewind = "rewind",
    /// Bring a client to PostgreSQL.
    Session = "session",
    /// Bring an operator's rehearsal to the writer.
    Rehearse = "rehearse",
    /// Hear how a node is, and tell it what it has to know.
    Node = "node",
    /// Feed a node's standby.
    Feed = "feed",
    /// Send a node a base backup.
    Backup = "backup",
    /// Bring a client of a node's endpoint to PostgreSQL.
    Client = "client",
    /// Say how far the region is.
    RegionStatus = "region_status",
    /// Say how far all regions are.
    ClusterStatus = "cluster_status",
    /// Say how applications connect, with the password.
    Url = "url",
    /// Show the volume, or read it back.
    Volume = "volume",
    /// Begin a promotion.
    Promote = "promote",
    /// Stop the writer for the region that shall lead.
    HandOver = "hand_over",
    /// Promise a proposal's number.
    Prepare = "prepare",
    /// Accept a record of who leads.
    Accept = "accept",
    /// Take note of a record that is agreed.
    Learn = "learn",
    /// Say what the voter has and knows.
    Survey = "survey",
    /// Gather and apply everything.
    GetReady = "get_ready",
    /// Begin to lead.
    Lead = "lead",
    /// Confirm the lease.
    Support = "support",
    /// Show the record of who leads.
    Record = "record",
    /// Tell a voter that has lost its memory what the asked one remembers.
    Recall = "recall",
    /// Vote again, on an operator's word, by what those say who answer.
    Revote = "revote",
    /// Set the data aside, and be seeded anew.
    Reseed = "reseed",
    /// Say what happened here.
    Events = "events",
    /// Say what PostgreSQL was busy with.
    Load = "load",
    /// Show the voters, or add one, or remove one.
    Voters = "voters",
    /// Read regions.toml again, and take what needs no restart.
    Reload = "reload",
    /// Do a step of giving the superuser another password.
    Password = "password",
    /// Tell the superuser's password to a region that has none that is right.
    FetchPassword = "fetch_password",
    /// Say which logical slots the writer has.
    Slots = "slots",
    /// Show who did what.
    Audit = "audit",
    /// Have another host of the region be its head.
    MoveHead = "move_head",
    /// Keep that a token is granted.
    Token = "token",
}

impl Request {
    /// What a first message asks for.
    #[must_use]
    pub fn of(purpose: &open::Purpose) -> Option<Request> {
        use control_request::Body;
        use open::Purpose;
        Some(match purpose {
            Purpose::Replicate(_) => Request::Replicate,
            Purpose::Seed(_) => Request::Seed,
            Purpose::Zone(_) => Request::Zone,
            Purpose::Copy(_) => Request::Copy,
            Purpose::Gather(_) => Request::Gather,
            Purpose::Rewind(_) => Request::Rewind,
            Purpose::Session(_) => Request::Session,
            Purpose::Rehearse(_) => Request::Rehearse,
            Purpose::Node(_) => Request::Node,
            Purpose::Feed(_) => Request::Feed,
            Purpose::Backup(_) => Request::Backup,
            Purpose::Client(_) => Request::Client,
            Purpose::Control(request) => match request.body.as_ref()? {
                Body::RegionStatus(_) => Request::RegionStatus,
                Body::ClusterStatus(_) => Request::ClusterStatus,
                Body::Url(_) => Request::Url,
                Body::Volume(_) => Request::Volume,
                Body::Promote(_) => Request::Promote,
                Body::HandOver(_) => Request::HandOver,
                Body::Prepare(_) => Request::Prepare,
                Body::Accept(_) => Request::Accept,
                Body::Learn(_) => Request::Learn,
                Body::Survey(_) => Request::Survey,
                Body::GetReady(_) => Request::GetReady,
                Body::Lead(_) => Request::Lead,
                Body::Support(_) => Request::Support,
                Body::Record(_) => Request::Record,
                Body::Recall(_) => Request::Recall,
                Body::Revote(_) => Request::Revote,
                Body::Reseed(_) => Request::Reseed,
                Body::Events(_) => Request::Events,
                Body::Load(_) => Request::Load,
                Body::Voters(_) => Request::Voters,
                Body::Reload(_) => Request::Reload,
                Body::Password(_) => Request::Password,
                Body::FetchPassword(_) => Request::FetchPassword,
                Body::Slots(_) => Request::Slots,
                Body::Audit(_) => Request::Audit,
                Body::MoveHead(_) => Request::MoveHead,
                Body::Token(_) => Request::Token,
            },
        })
    }
}

/// What must hold besides, by what the asked daemon knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The asker is the primary of the epoch that it names.
    LeadsEpoch,
    /// The asker is the region that shall lead the epoch that it names, by the promotion in progress.
    ShallLead,
    /// The asker coordinates the promotion in progress.
    Coordinates,
    /// The record is the one that the asked voter has accepted already: it may be agreed on again, and not be
    /// changed.
    SameRecord,
    /// The node speaks of itself: of its own name, and the copies of the zone that the file gives it.
    Itself,
}

impl Condition {
    /// All that there are.
    pub const ALL: [Condition; 5] = [
        Condition::LeadsEpoch,
        Condition::ShallLead,
        Condition::Coordinates,
        Condition::SameRecord,
        Condition::Itself,
    ];

    /// Its mark in the table.
    #[must_use]
    pub fn mark(self) -> &'static str {
        match self {
            Condition::LeadsEpoch => "leads",
            Condition::ShallLead => "shall lead",
            Condition::Coordinates => "coordinates",
            Condition::SameRecord => "same",
            Condition::Itself => "itself",
        }
    }

    /// What it says, in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Condition::LeadsEpoch => "only the primary of the epoch that the request names",
            Condition::ShallLead => {
                "only the region that shall lead the epoch that the request names, by the promotion in progress"
            }
            Condition::Coordinates => {
                "only the coordinator of the promotion in progress; anybody in this column for a dry run"
            }
            Condition::SameRecord => {
                "only the record that the asked voter has accepted already: to agree on it again changes nothing"
            }
            Condition::Itself => {
                "only as the node that its certificate names, and for the copies of the zone that the file gives it"
            }
        }
    }
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// It may be asked.
    Allowed,
    /// It may be asked when this holds.
    OnlyIf(Condition),
    /// It may not be asked.
    Refused,
}

/// The table: whether `who` may ask `request` of `asked`.
#[must_use]
pub fn rule(who: Who, request: Request, asked: Asked) -> Rule {
    use Request as R;
    use Rule::{Allowed, OnlyIf, Refused};
    match (asked, who) {
        (Asked::Region, Who::Operator) => match request {
            R::RegionStatus | R::ClusterStatus | R::Url | R::Volume | R::Promote => Allowed,
            R::Record | R::Events | R::Load | R::Revote | R::Reseed | R::Voters => Allowed,
            R::Reload | R::Password | R::Audit | R::Rehearse | R::MoveHead | R::Token => Allowed,
            _ => Refused,
        },
        // It looks on: no order, no secret, and nothing that works for it.
        (Asked::Region, Who::Monitor) => match request {
            R::RegionStatus | R::ClusterStatus => Allowed,
            _ => Refused,
        },
        (Asked::Region, Who::Region) => match request {
            R::Replicate | R::Seed | R::Rewind => OnlyIf(Condition::LeadsEpoch),
            R::Gather => OnlyIf(Condition::ShallLead),
            R::HandOver | R::GetReady | R::Lead => OnlyIf(Condition::Coordinates),
            R::RegionStatus | R::Record | R::Events | R::FetchPassword | R::Slots => Allowed,
            R::Session => Allowed,
            R::Prepare | R::Accept | R::Learn | R::Survey | R::Support | R::Recall => Allowed,
            _ => Refused,
        },
        // A witness has a vote, and says nothing of its own: it neither begins promotions nor shapes them.
        (Asked::Region | Asked::Witness, Who::Witness) => match request {
            R::Prepare | R::Learn | R::Survey | R::Record | R::Recall => Allowed,
            R::Accept => OnlyIf(Condition::SameRecord),
            _ => Refused,
        },
        (Asked::Region, Who::Own) => match request {
            R::Zone | R::Node | R::Feed | R::Backup | R::Client => Allowed,
            _ => Refused,
        },
        // It keeps copies, and follows: it has no vote, and does not speak for the region.
        (Asked::Region, Who::Node) => match request {
            R::Zone | R::Node | R::Feed | R::Backup => OnlyIf(Condition::Itself),
            R::Client => Allowed,
            _ => Refused,
        },
        (Asked::Witness, Who::Operator) => match request {
            R::Record | R::Revote | R::Events | R::Reload | R::Audit => Allowed,
            _ => Refused,
        },
        (Asked::Witness, Who::Region) => match request {
            R::Prepare | R::Accept | R::Learn | R::Survey | R::Support | R::Record | R::Recall => Allowed,
            _ => Refused,
        },
        (Asked::Zone, Who::Own) => match request {
            R::Copy => Allowed,
            _ => Refused,
        },
        (Asked::Witness, Who::Own | Who::Monitor | Who::Node)
        | (Asked::Zone, Who::Operator | Who::Monitor | Who::Region | Who::Witness | Who::Node)
        | (_, Who::Stranger) => Refused,
    }
}

/// The names of the file, by which a certificate's holder is one thing or another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The daemon's own.
    pub own: RegionName,
    /// The regions'.
    pub regions: Vec<RegionName>,
    /// The witnesses'.
    pub witnesses: Vec<RegionName>,
}

impl Names {
    /// The names of `config`, as the daemon of `own` sees them.
    #[must_use]
    pub fn of(config: &Config, own: &RegionName) -> Names {
        Names {
            own: own.clone(),
            regions: config.regions.iter().map(|region| region.name.clone()).collect(),
            witnesses: config.witnesses.iter().map(|witness| witness.name.clone()).collect(),
        }
    }

    /// Who `peer` is. A certificate with a role is that role's alone: a witness' is nobody's where the file
    /// has a region of that name.
    #[must_use]
    pub fn who(&self, peer: &Peer) -> Who {
        let is_region = |name| self.regions.contains(name);
        let is_witness = |name| self.witnesses.contains(name);
        let who = |name: &RegionName, who| if *name == self.own { Who::Own } else { who };
        match peer {
            Peer::Operator(_) => Who::Operator,
            Peer::Monitor(_) => Who::Monitor,
            Peer::Region(name) | Peer::Voter(name) if is_region(name) => who(name, Who::Region),
            Peer::Witness(name) | Peer::Voter(name) if is_witness(name) => who(name, Who::Witness),
            Peer::Node(region, _) if *region == self.own && is_region(region) => Who::Node,
            Peer::Region(_) | Peer::Witness(_) | Peer::Voter(_) | Peer::Node(..) => Who::Stranger,
        }
    }

    /// Whether `name` is a region or a witness of the file.
    #[must_use]
    pub fn has(&self, name: &RegionName) -> bool {
        self.regions.contains(name) || self.witnesses.contains(name)
    }
}

/// The table as docs/PROTOCOL.md has it.
#[must_use]
pub fn document() -> String {
    let cell = |who, request, asked| match rule(who, request, asked) {
        Rule::Allowed => "yes".to_owned(),
        Rule::OnlyIf(condition) => format!("*{}*", condition.mark()),
        Rule::Refused => "–".to_owned(),
    };
    let mut text = String::from(
        "| asked | request | an operator | a monitor | another region | a witness | its own certificate | a node of it |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for asked in Asked::ALL {
        for request in Request::ALL.iter().copied() {
            let cells = [Who::Operator, Who::Monitor, Who::Region, Who::Witness, Who::Own, Who::Node]
                .map(|who| cell(who, request, asked));
            if cells.iter().any(|cell| cell != "–") {
                text += &format!("| {asked} | `{}` | {} |\n", request.name(), cells.join(" | "));
            }
        }
    }
    text.push('\n');
    for condition in Condition::ALL {
        text += &format!("- *{}*: {}.\n", condition.mark(), condition.words());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every cell of the table, written out. y: allowed, -: refused, else the condition.
    const CELLS: &str = "
        asked of a region              operator  monitor  region       witness  own  node    stranger
        replicate                      -         -        leads        -        -    -       -
        seed                           -         -        leads        -        -    -       -
        zone                           -         -        -            -        y    itself  -
        copy                           -         -        -            -        -    -       -
        gather                         -         -        shall_lead   -        -    -       -
        rewind                         -         -        leads        -        -    -       -
        session                        -         -        y            -        -    -       -
        rehearse                       y         -        -            -        -    -       -
        node                           -         -        -            -        y    itself  -
        feed                           -         -        -            -        y    itself  -
        backup                         -         -        -            -        y    itself  -
        client                         -         -        -            -        y    y       -
        region_status                  y         y        y            -        -    -       -
        cluster_status                 y         y        -            -        -    -       -
        url                            y         -        -            -        -    -       -
        volume                         y         -        -            -        -    -       -
        promote                        y         -        -            -        -    -       -
        hand_over                      -         -        coordinates  -        -    -       -
        prepare                        -         -        y            y        -    -       -
        accept                         -         -        y            same     -    -       -
        learn                          -         -        y            y        -    -       -
        survey                         -         -        y            y        -    -       -
        get_ready                      -         -        coordinates  -        -    -       -
        lead                           -         -        coordinates  -        -    -       -
        support                        -         -        y            -        -    -       -
        record                         y         -        y            y        -    -       -
        recall                         -         -        y            y        -    -       -
        revote                         y         -        -            -        -    -       -
        reseed                         y         -        -            -        -    -       -
        events                         y         -        y            -        -    -       -
        load                           y         -        -            -        -    -       -
        voters                         y         -        -            -        -    -       -
        reload                         y         -        -            -        -    -       -
        password                       y         -        -            -        -    -       -
        fetch_password                 -         -        y            -        -    -       -
        slots                          -         -        y            -        -    -       -
        audit                          y         -        -            -        -    -       -
        move_head                      y         -        -            -        -    -       -
        token                          y         -        -            -        -    -       -
        asked of a witness             operator  monitor  region       witness  own  node    stranger
        replicate                      -         -        -            -        -    -       -
        seed                           -         -        -            -        -    -       -
        zone                           -         -        -            -        -    -       -
        copy                           -         -        -            -        -    -       -
        gather                         -         -        -            -        -    -       -
        rewind                         -         -        -            -        -    -       -
        session                        -         -        -            -        -    -       -
        rehearse                       -         -        -            -        -    -       -
        node                           -         -        -            -        -    -       -
        feed                           -         -        -            -        -    -       -
        backup                         -         -        -            -        -    -       -
        client                         -         -        -            -        -    -       -
        region_status                  -         -        -            -        -    -       -
        cluster_status                 -         -        -            -        -    -       -
        url                            -         -        -            -        -    -       -
        volume                         -         -        -            -        -    -       -
        promote                        -         -        -            -        -    -       -
        hand_over                      -         -        -            -        -    -       -
        prepare                        -         -        y            y        -    -       -
        accept                         -         -        y            same     -    -       -
        learn                          -         -        y            y        -    -       -
        survey                         -         -        y            y        -    -       -
        get_ready                      -         -        -            -        -    -       -
        lead                           -         -        -            -        -    -       -
        support                        -         -        y            -        -    -       -
        record                         y         -        y            y        -    -       -
        recall                         -         -        y            y        -    -       -
        revote                         y         -        -            -        -    -       -
        reseed                         -         -        -            -        -    -       -
        events                         y         -        -            -        -    -       -
        load                           -         -        -            -        -    -       -
        voters                         -         -        -            -        -    -       -
        reload                         y         -        -            -        -    -       -
        password                       -         -        -            -        -    -       -
        fetch_password                 -         -        -            -        -    -       -
        slots                          -         -        -            -        -    -       -
        audit                          y         -        -            -        -    -       -
        move_head                      -         -        -            -        -    -       -
        token                          -         -        -            -        -    -       -
        asked of a zone's process      operator  monitor  region       witness  own  node    stranger
        replicate                      -         -        -            -        -    -       -
        seed                           -         -        -            -        -    -       -
        zone                           -         -        -            -        -    -       -
        copy                           -         -        -            -        y    -       -
        gather                         -         -        -            -        -    -       -
        rewind                         -         -        -            -        -    -       -
        session                        -         -        -            -        -    -       -
        rehearse                       -         -        -            -        -    -       -
        node                           -         -        -            -        -    -       -
        feed                           -         -        -            -        -    -       -
        backup                         -         -        -            -        -    -       -
        client                         -         -        -            -        -    -       -
        region_status                  -         -        -            -        -    -       -
        cluster_status                 -         -        -            -        -    -       -
        url                            -         -        -            -        -    -       -
        volume                         -         -        -            -        -    -       -
        promote                        -         -        -            -        -    -       -
        hand_over                      -         -        -            -        -    -       -
        prepare                        -         -        -            -        -    -       -
        accept                         -         -        -            -        -    -       -
        learn                          -         -        -            -        -    -       -
        survey                         -         -        -            -        -    -       -
        get_ready                      -         -        -            -        -    -       -
        lead                           -         -        -            -        -    -       -
        support                        -         -        -            -        -    -       -
        record                         -         -        -            -        -    -       -
        recall                         -         -        -            -        -    -       -
        revote                         -         -        -            -        -    -       -
        reseed                         -         -        -            -        -    -       -
        events                         -         -        -            -        -    -       -
        load                           -         -        -            -        -    -       -
        voters                         -         -        -            -        -    -       -
        reload                         -         -        -            -        -    -       -
        password                       -         -        -            -        -    -       -
        fetch_password                 -         -        -            -        -    -       -
        slots                          -         -        -            -        -    -       -
        audit                          -         -        -            -        -    -       -
        move_head                      -         -        -            -        -    -       -
        token                          -         -        -            -        -    -       -
    ";

    #[test]
    fn every_cell_of_the_table_is_as_written_here() {
        let mut actual = String::new();
        for asked in Asked::ALL {
            actual += &format!("asked of {asked} operator monitor region witness own node stranger\n");
            for request in Request::ALL.iter().copied() {
                let cells = Who::ALL.map(|who| match rule(who, request, asked) {
                    Rule::Allowed => "y".to_owned(),
                    Rule::OnlyIf(condition) => condition.mark().replace(' ', "_"),
                    Rule::Refused => "-".to_owned(),
                });
                actual += &format!("{} {}\n", request.name(), cells.join(" "));
            }
        }
        let lines = |text: &str| -> Vec<String> {
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            text.lines().map(words).filter(|line| !line.is_empty()).collect()
        };
        assert_eq!(lines(&actual), lines(CELLS));
    }

    /// A request that is added to the `.proto` is refused until it is listed, and this test says that it is
    /// not.
    #[test]
    fn every_purpose_and_every_request_of_the_proto_is_listed() {
        let proto = include_str!("../../../proto/replicator.proto");
        let fields = |message: &str| -> Vec<String> {
            let body = proto.split_once(&format!("\nmessage {message} {{")).unwrap().1;
            let oneof = body.split_once("oneof").unwrap().1.split_once('{').unwrap().1;
            let lines = oneof.split_once('}').unwrap().0.lines().map(str::trim);
            let fields = lines.filter(|line| !line.is_empty() && !line.starts_with("//"));
            fields.map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect()
        };
        let mut known = fields("Open");
        known.retain(|purpose| purpose != "control");
        known.extend(fields("ControlRequest"));
        let listed: Vec<&str> = Request::ALL.iter().map(|request| request.name()).collect();
        let (mut known, mut listed) = (known, listed);
        known.sort_unstable();
        listed.sort_unstable();
        assert_eq!(known, listed);
    }

    #[test]
    fn a_certificate_says_who_asks() {
        let name = |text: &str| text.parse::<RegionName>().unwrap();
        let names = Names { own: name("a"), regions: vec![name("a"), name("b")], witnesses: vec![name("w")] };
        let holder = || "ann".parse().unwrap();
        assert_eq!(names.who(&Peer::Operator(holder())), Who::Operator);
        assert_eq!(names.who(&Peer::Monitor(holder())), Who::Monitor);
        // Of before there were roles the file says what they are; a role is that role's alone.
        let all = |of: fn(RegionName) -> Peer| ["a", "b", "w", "x"].map(|text| names.who(&of(name(text))));
        let stranger = Who::Stranger;
        assert_eq!(all(Peer::Voter), [Who::Own, Who::Region, Who::Witness, stranger]);
        assert_eq!(all(Peer::Region), [Who::Own, Who::Region, stranger, stranger]);
        assert_eq!(all(Peer::Witness), [stranger, stranger, Who::Witness, stranger]);
        let node = |region: &str| names.who(&Peer::Node(name(region), "n1".parse().unwrap()));
        assert_eq!(["a", "b", "w", "x"].map(node), [Who::Node, stranger, stranger, stranger]);
        let witness = Names { own: name("w"), ..names.clone() };
        assert_eq!(witness.who(&Peer::Witness(name("w"))), Who::Own);
        assert_eq!(witness.who(&Peer::Node(name("w"), "n1".parse().unwrap())), stranger);
        assert!(names.has(&name("w")) && !names.has(&name("x")));
    }

    /// `REPLICATOR_BLESS=1` writes the table into the document instead (`make fix`).
    #[test]
    fn the_protocol_document_has_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROTOCOL.md");
        let (begin, end) = ("<!-- table of authority: begin -->\n", "<!-- table of authority: end -->");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once(begin).unwrap();
        let (table, after) = rest.split_once(end).unwrap();
        if std::env::var_os("REPLICATOR_BLESS").is_some() {
            std::fs::write(path, format!("{before}{begin}{}{end}{after}", document())).unwrap();
        } else {
            assert!(table == document(), "docs/PROTOCOL.md is out of date: `make fix` writes the table anew");
        }
    }
}
