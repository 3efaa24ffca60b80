//! The longer words of `replicator <command> --help`.

/// `replicator`.
pub(super) const PROGRAM: &str = "\
Begin with:
  replicator up                         every region of regions.toml, on this machine
  replicator status --watch             how far each region is
  psql \"$(replicator url --region us-east)\"

The data directory is /var/lib/replicator/<cluster> for root and for the account that
/var/lib/replicator belongs to, and ~/.local/state/replicator/<cluster> for others. As root, a command
works as the account that the data directory belongs to. Commands reach daemons over mutual TLS, with
the operator's certificate in it.";

/// `replicator up`.
pub(super) const UP: &str = "\
Ctrl-C stops every region cleanly; the next `up` goes on where it was. With --detach it stops those
that this `up` has started, and no other.";

/// `replicator run`.
pub(super) const RUN: &str = "\
Alone, it holds the region's six copies, two in each of the zones a, b and c. Zones that
regions.toml names in `own_process` run by themselves, anywhere: replicator run --region us-east
--az b. A node of [region.us-east.node.n1] is another host of the region, with the copies of its
zone and a replica of the region's PostgreSQL: replicator run --region us-east --node n1";

/// `replicator status`.
pub(super) const STATUS: &str = "\
Works against any region's daemon, and says what it cannot reach. Lags are measured in the
primary's clock. Behind: redo not yet applied. With --json, one line of JSON each time.

Exit status: 0 all is well; 1 degraded, as a secondary or a replica of a node does not stream or lags
by more than --max-lag, copies of a volume are away, a disk is nearly full, a certificate ends within
30 days, or failovers by themselves are used up; 2 no region takes writes, commits are held, or no
daemon answers.
Why is said on standard error. With --check all is one line on standard output, with the lags as
performance data, as Nagios, Icinga and their kin take it:
  replicator status --check --max-lag 5s

With --watch on a terminal: q or Ctrl-C leaves.";

/// `replicator events`.
pub(super) const EVENTS: &str = "\
Each daemon keeps a journal of its own, of at most 2 MiB: parts that change, promotions, commits
that are held and why, copies lost and repaired, seeds and rewinds, refused peers, changed
configuration, PostgreSQL that ends. All daemons that can be reached are asked, and what several
know is shown once. Times are UTC. For example:
  replicator events --since 8h
  replicator events --follow --json | jq 'select(.weight == \"grave\")'";

/// `replicator load`.
pub(super) const LOAD: &str = "\
Each second the region's daemon looks which sessions are active, and what they wait for (CPU where
that is nothing). The average of such looks is the load: above the number of cores, sessions wait
for each other. Looks are kept for an hour, sums of minutes for seven days. Statements are shown
without their values. For example:
  replicator load --since 10m --by statement
  replicator load --region eu-west --since 24h --json | jq '.top[0]'

With --by statement, and where pg_stat_statements is installed in the database postgres, what that
counts is shown as well. `load = false` in [telemetry] of regions.toml turns looking off.";

/// `replicator promote`.
pub(super) const PROMOTE: &str = "\
A switchover loses nothing; the primary must be reachable. Before anything is touched, all that
could hinder is looked at; what can be mended is, and what cannot refuses (--dry-run shows it). Then the writer stops, its last record is applied
over there, and the region takes writes; the old primary follows as a secondary, without a
rebuild. If a step cannot finish in time, the old primary goes on. Clients that connect with
`replicator url --writer` find the new writer by themselves. Once it has begun, a promotion goes
on, or is rolled back, without this command: whichever daemon is alive sees to that.

A failover (--mode failover) needs a majority of the regions and witnesses, without the old
primary. It waits until that can acknowledge nothing any more (`lease`), gathers the redo that any
survivor has, and says what may be lost. The old primary, when it is back, keeps what only it had
aside (`replicator lost`), and follows.

With --node another host of a region becomes its head: the one that runs the writer, or in a secondary
takes the redo. No region changes its part. For a rolling restart, or a minor upgrade:
  replicator promote --region us-east --node n1 --dry-run    what hinders it; changes nothing
  replicator promote --region us-east --node n1              then restart the old head's host
  replicator promote --region us-east --node home            back to the host of the region's daemon
Until the head has handed over it leads on where anything fails; after that another host takes over
within `take_over_after` where N does not. Ctrl-C stops the words, and not the move.";

/// `replicator reseed`.
pub(super) const RESEED: &str = "\
For a region whose data are wrong or damaged: nothing has to be deleted by hand. Its data
directory and its volume are moved to aside/<time> in its directory; its certificate, its vote and
the lost writes that it keeps stay. Its daemon starts again, and the primary sends a seed. Copies of
zones with a process of their own stay where they are, and begin anew. A primary is refused: order
a promotion first. Delete aside/<time> when you do not need it any more.";

/// `replicator revote`.
pub(super) const REVOTE: &str = "\
A voter whose directory is gone does not know what it has promised. It answers nothing until a
majority of the other voters has told it theirs, which it asks by itself. Where those are lost for
good, it needs your word, as two voters of two may. `status` says what it waits for.";

/// `replicator replica`.
pub(super) const REPLICA: &str = "\
A replica follows its region's volume, not the writer, and is read by whoever needs its answers: see
`url --reader` and the reader endpoint. `add` writes the node into regions.toml, has the daemons take
it, and starts its process where the region runs on this machine; elsewhere it says what to do on the
node's host. The first copy is made by a base backup within the region. The same by hand: the section
[region.R.node.N], `certs`, `reload`, and `run --region R --node N`. Regions on other machines have
files of their own: change those too.";

/// `replicator voters`.
pub(super) const VOTERS: &str = "\
Who votes is part of the record of who leads. One voter is added or removed at a time, by the primary,
and writes go on. To add one: write it into regions.toml everywhere, restart the daemons one after the
other, start the new one, then `voters add`. To remove one: `voters remove`, then stop it, then take it
out of the files. Both wait for what is in progress, and can be repeated. Where voters were lost that
a failover counted out on your word, they have a vote again once they answer the primary.";

/// `replicator drill`.
pub(super) const DRILL: &str = "\
On the region's own machine. A clone of the standby's data gets redo out of the region's volume up
to a moment of the primary, is promoted where nobody sees it, is checked (it takes writes,
pg_amcheck, every row against the primary at that moment), timed and removed. Replication goes on;
writers of the primary wait once, for as long as the transactions take that just write, at most
0.2 s. Exit status 1 when a check fails or could not be done.

--full promotes the region for real, and then the old primary again: writes stop twice for a moment.

For the audit file:  replicator drill --region eu-west --markdown > drill.md";

/// `replicator reload`.
pub(super) const RELOAD: &str = "\
Each region's daemon reads regions.toml on its own machine and checks it as `check` does. A file that
is wrong changes nothing. What can be taken while everything goes on is: settings of PostgreSQL that
it reads again, `hba`, [volume], [telemetry], [logs], [endpoints], [pgbouncer], `failover`, `failover_after`,
`max_loss`, `http`, `bandwidth`. Of everything else that is another it is said what has to be restarted, and in which order. SIGHUP to a daemon does the same, and its log
says it. Witnesses and zones with a process of their own read the file when they start.

Exit status 1 when a daemon refused something or did not answer. --json: for each region `refused`
(why the file is not taken), `error` (why there is no answer) and `keys`, each with `outcome`
(unchanged, applied, needs_restart, refused) and `detail`.";

/// `replicator password rotate`.
pub(super) const PASSWORD_ROTATE: &str = "\
The new password is drawn here, and is on no command line and in no log. Each region's daemon keeps it
as the next one before the primary's PostgreSQL gets it; a region's files take it at the moment at
which its own PostgreSQL does, as the redo arrives. The role that applications use (`owner`) gets another
one in the same moment, and is made where it is not there; where you have given it a password of its own, it
keeps that. Sessions go on; who connects after that needs the
new one: `replicator url` prints it. A region that is away asks the primary for it when it is back.
The primary must be reached, and commits must return. Interrupted: give the command again.";

/// `replicator url`.
pub(super) const URL: &str = "\
It is for the role that applications use (`owner` in regions.toml, \"app\" where that does not say), which owns
the database of its name; it holds that role's password, and gives up a region that does not answer within
seconds. Over the network nobody comes in as the superuser; on the region's own machine --superuser does.
For example:
  psql \"$(replicator url --region us-east)\"
  psql \"$(replicator url --region us-east --superuser)\"    # on us-east's machine
  psql \"$(replicator url --endpoint reader --region eu-west --after 0/16B3748)\"    # no older than that";

/// `replicator audit`.
pub(super) const AUDIT: &str = "\
A line for each order, each secret that was given, each refusal, and each change of the configuration:
who (role, name and the certificate's serial number), from where, what, and what came of it. Each line
has a hash of itself and of the one before. --verify names lines that were changed, are missing, or
stand elsewhere, and fails then. Note the number and hash that it prints on another machine: who has a
daemon's account could write all of its audit anew.";

/// `replicator certs`.
pub(super) const CERTS: &str = "\
`up` does this by itself. To run regions on other machines, copy <data>/regions/<region>/identity
to each. The authority's key, <data>/authority/ca.key, belongs on none of them. Daemons use what
is copied there within seconds, and no connection breaks. A certificate has a role: region, witness,
node, operator or monitor. Certificates of a version without roles go on until --renew.

  replicator certs --operator ann    a person of her own: REPLICATOR_IDENTITY=<data>/operators/ann
  replicator certs --monitor grafana may see `status`, and nothing else
  replicator certs --list            whose, until when, and the serial numbers for `denied` in the file

A key that never leaves the machine that uses it:
  there:               replicator certs --request --region us-east > request
  at the authority:    replicator certs --sign request > certificate
  there:               replicator certs --install certificate --region us-east --trust ca.pem

Another authority, while everything goes on:
  1. replicator certs --new-authority; copy every identity, and operator: both are trusted. Clients of
     PostgreSQL that have a ca.pem of their own get the new one (operator/ca.pem) now
  2. replicator certs --renew; copy again: certificates are the new one's
  3. replicator certs --drop-old-authority; copy again: the old one is trusted no more";

/// `replicator token`.
pub(super) const TOKEN: &str = "\
A token is a client certificate and its key. Every region's PostgreSQL lets its holder log in as that
role, and as no other, until it ends; sessions that there are then go on. The connection string that is
printed names the files, token.crt, token.key and root.crt, and has no secret in it:
  psql \"$(replicator token --role app --for 15m --out /run/user/1000/app)\"
A daemon keeps in its audit who was given which. A token that was stolen: its serial number into
`denied` of the file, and `replicator reload`. As root, the files are written as the account that the
data directory belongs to.";

/// After the first step to another authority.
pub(super) const AUTHORITY_PREPARED: &str = "\
A new authority is made, and trusted beside the old one. Copy every `identity`, and `operator`, to where
they are used; once all daemons have them, go on: replicator certs --renew";

/// `replicator lost show`.
pub(super) const LOST_SHOW: &str = "\
Relations are printed as tablespace/database/file. In that database, SELECT
pg_filenode_relation(tablespace, file) says which one that is (0 for the default tablespace,
1663).";

/// `replicator keys rotate`.
pub(super) const KEYS_ROTATE: &str = "\
Where the file of regions turns `encryption` on. The key is added to the region's file of keys, which a
running daemon looks at every two seconds; from its next segment on the volume is sealed with it. Older
segments are read with theirs: no key is taken out of the file. Keep a copy of that file somewhere else
after each rotation: without it the region's redo cannot be read by anybody.";
