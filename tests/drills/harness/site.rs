//! Regions as containers, each on a network of its own.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use bollard::Docker;
use bollard::models::NetworkCreateRequest;
use replicator::operator::Operator;
use replicator_tests::ledger::{Acknowledged, Ledger};
use replicator_tests::{REGIONS, connect_to, program, text, until};
use sqlx::PgConnection;
use tempfile::TempDir;
use testcontainers::core::{ExecCommand, Mount};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt};
use tokio::time::Instant;

use super::Plan;
use super::wan::{Wan, Weather};

/// The label of all that a run makes.
const LABEL: &str = "replicator.drill";

/// Where a region's daemon listens, and its PostgreSQL.
const QUIC: u16 = 7401;
const POSTGRES: u16 = 5432;

/// Takes the region's identity on its first start, and becomes the daemon as an account without rights:
/// process 1.
const ENTRY: &str = "if [ ! -e /var/lib/replicator/operator ]; then cp -a /identity/. /var/lib/replicator/; \
     chown -R postgres:postgres /var/lib/replicator; fi; \
     exec setpriv --reuid=postgres --regid=postgres --clear-groups replicator \"$@\"";

/// A region.
struct Region {
    name: &'static str,
    network: String,
    gateway: IpAddr,
    container: Option<ContainerAsync<GenericImage>>,
    zones: Vec<(char, ContainerAsync<GenericImage>)>,
    address: Option<IpAddr>,
}

/// All regions of a drill, the primary first.
pub struct Site {
    docker: Docker,
    directory: TempDir,
    label: String,
    lines: &'static str,
    zones: bool,
    small_disk: Option<(&'static str, i64)>,
    regions: Vec<Region>,
    password: String,
    /// The network between them.
    wan: Wan,
}

impl Site {
    /// Networks for the regions of `plan`, which are not up yet.
    pub async fn new(plan: &Plan, seed: u64) -> Site {
        let docker = Docker::connect_with_local_defaults().unwrap();
        let run = std::env::var("DRILL_RUN").unwrap_or_else(|_| "by-hand".into());
        let unique = format!("{}-{}-{}", plan.name, std::process::id(), seed);
        let mut regions = Vec::new();
        for name in REGIONS.into_iter().take(plan.secondaries + 1) {
            let network = format!("replicator-{unique}-{name}");
            let request = NetworkCreateRequest {
                name: network.clone(),
                labels: Some(HashMap::from([(LABEL.to_owned(), run.clone())])),
                ..NetworkCreateRequest::default()
            };
            docker.create_network(request).await.unwrap();
            let made = docker.inspect_network(&network, None).await.unwrap();
            let config = made.ipam.unwrap().config.unwrap().into_iter().find_map(|config| config.gateway);
            let gateway = config.unwrap().parse().unwrap();
            regions.push(Region {
                name,
                network,
                gateway,
                container: None,
                zones: Vec::new(),
                address: None,
            });
        }
        let gateways: Vec<IpAddr> = regions.iter().map(|region| region.gateway).collect();
        let wan = Wan::new(&gateways, seed).await;
        // Far apart, and not perfect.
        wan.change(|weather| {
            weather.delay = Duration::from_millis(10);
            weather.jitter = Duration::from_millis(2);
            weather.lost_of_1000 = if plan.clean { 0 } else { 1 };
        });
        let directory = tempfile::Builder::new().prefix("rpl-drill-").tempdir().unwrap();
        let (label, lines, password) = (run, plan.lines, String::new());
        let Plan { zones, small_disk, .. } = *plan;
        Site { docker, directory, label, lines, zones, small_disk, regions, password, wan }
    }

    /// Starts all regions, and waits until they stream.
    pub async fn bring_up(&mut self) {
        let data = self.directory.path().join("data");
        std::fs::write(self.file(), self.operators_file()).unwrap();
        let _ = self.printed(&["certs"]);
        for index in 0..self.regions.len() {
            let name = self.regions[index].name;
            let home = self.directory.path().join(name);
            let identity = home.join("regions").join(name);
            runtime::private::make_directory(&identity).unwrap();
            copy(&data.join("regions").join(name).join("identity"), &identity.join("identity"));
            copy(&data.join("operator"), &home.join("operator"));
            let file = self.directory.path().join(format!("{name}.toml"));
            std::fs::write(&file, self.regions_file(index)).unwrap();
            let arguments = ["run", "--region", name];
            let container = self.request(index, "", &home, &file, &arguments).start().await.unwrap();
            self.regions[index].container = Some(container);
            self.find_address(index).await;
            for zone in ['a', 'b', 'c'].into_iter().filter(|_| self.zones && index == 0) {
                let text = self
                    .regions_file(index)
                    .replace("127.0.0.1:7401", &format!("{}:{QUIC}", self.regions[0].network));
                let file = self.directory.path().join(format!("{name}-az-{zone}.toml"));
                std::fs::write(&file, text).unwrap();
                let (suffix, zone_name) = (format!("-az-{zone}"), zone.to_string());
                let arguments = ["run", "--region", name, "--az", zone_name.as_str()];
                let container = self.request(index, &suffix, &home, &file, &arguments).start().await.unwrap();
                self.regions[index].zones.push((zone, container));
            }
        }
        std::fs::write(self.file(), self.operators_file()).unwrap();
        until("all regions stream", || async {
            let rows = self.try_status().map(|status| status["regions"].as_array().unwrap().clone());
            rows.is_some_and(|rows| rows.iter().all(|row| row["state"] == "streaming"))
        })
        .await;
        let url = self.printed(&["url", "--region", self.regions[0].name]);
        self.password = url.split(['@', ':']).nth(2).unwrap().to_owned();
    }

    fn request(
        &self,
        index: usize,
        suffix: &str,
        home: &Path,
        file: &Path,
        arguments: &[&str],
    ) -> ContainerRequest<GenericImage> {
        let Region { name, network, .. } = &self.regions[index];
        let path = |path: &Path| path.display().to_string();
        let command = ["-ec", ENTRY, "replicator"].iter().chain(arguments).copied();
        let request = GenericImage::new("replicator", "latest")
            .with_entrypoint("sh")
            .with_cmd(command)
            .with_user("root")
            .with_network(network)
            .with_container_name(format!("{network}{suffix}"))
            .with_hostname(*name)
            .with_label(LABEL, &self.label)
            .with_env_var("REPLICATOR_REGION", *name)
            .with_env_var("RUST_BACKTRACE", "1")
            .with_mount(Mount::bind_mount(path(home), "/identity"))
            .with_mount(Mount::bind_mount(path(file), "/etc/replicator/regions.toml"));
        match self.small_disk {
            Some((small, bytes)) if small == *name => {
                let volume = format!("/var/lib/replicator/regions/{name}/volume");
                request.with_mount(Mount::tmpfs_mount(volume).with_size_bytes(bytes))
            }
            _ => request,
        }
    }

    /// `regions.toml` as region `own` has it: it finds the others across the network.
    fn regions_file(&self, own: usize) -> String {
        let mut text = format!("cluster = \"drill\"\nowner = \"postgres\"\n{}\n", self.lines);
        for (index, Region { name, .. }) in self.regions.iter().enumerate() {
            let role = if index == 0 { "primary" } else { "secondary" };
            text += &format!("[region.{name}]\nrole = \"{role}\"\n");
            if self.zones && index == 0 {
                text += "own_process = [\"a\", \"b\", \"c\"]\n";
            }
            text += &match index == own {
                true => format!(
                    "listen = \"0.0.0.0:{QUIC}\"\nadvertise = \"127.0.0.1:{QUIC}\"\npostgres = \"0.0.0.0:{POSTGRES}\"\n"
                ),
                // Where another region listens is of no use here, and must be told apart.
                false => format!(
                    "listen = \"127.1.0.{index}:750{index}\"\nadvertise = \"{}\"\npostgres = \"127.1.0.{index}:550{index}\"\n",
                    self.wan.place(own, index)
                ),
            };
        }
        text
    }

    /// `regions.toml` as the operator has it, who is near to every region.
    fn operators_file(&self) -> String {
        let mut text = format!("cluster = \"drill\"\nowner = \"postgres\"\n{}\n", self.lines);
        for (index, Region { name, address, .. }) in self.regions.iter().enumerate() {
            let role = if index == 0 { "primary" } else { "secondary" };
            let address = address.unwrap_or_else(|| IpAddr::from([127, 1, 0, u8::try_from(index).unwrap()]));
            text += &format!("[region.{name}]\nrole = \"{role}\"\n");
            text += &format!("listen = \"{address}:{QUIC}\"\npostgres = \"{address}:{POSTGRES}\"\n");
        }
        text
    }

    async fn find_address(&mut self, index: usize) {
        let Region { network, .. } = &self.regions[index];
        let found = self.docker.inspect_container(network, None).await.unwrap();
        let networks = found.network_settings.unwrap().networks.unwrap();
        let address: IpAddr = networks[network].ip_address.clone().unwrap().parse().unwrap();
        self.regions[index].address = Some(address);
        self.wan.set_region(index, SocketAddr::from((address, QUIC)));
    }

    fn index(&self, region: &str) -> usize {
        self.regions.iter().position(|own| own.name == region).unwrap()
    }

    fn container(&self, region: &str) -> &ContainerAsync<GenericImage> {
        self.regions[self.index(region)].container.as_ref().unwrap()
    }

    // --- disasters

    /// Ends every process of a region at once.
    pub async fn kill(&self, region: &str) {
        let network = &self.regions[self.index(region)].network;
        self.docker.kill_container(network, None).await.unwrap();
    }

    /// Has every process of a region stand still: what its kernel answers it answers on.
    pub async fn freeze(&self, region: &str) {
        let network = &self.regions[self.index(region)].network;
        self.docker.pause_container(network).await.unwrap();
    }

    /// Lets them go on.
    pub async fn thaw(&self, region: &str) {
        let network = &self.regions[self.index(region)].network;
        self.docker.unpause_container(network).await.unwrap();
    }

    /// Starts a region's container again, with what its disk holds.
    pub async fn start(&mut self, region: &str) {
        self.container(region).start().await.unwrap();
        let index = self.index(region);
        self.find_address(index).await;
        std::fs::write(self.file(), self.operators_file()).unwrap();
    }

    /// Stops a region cleanly, as an orchestrator does.
    pub async fn stop(&self, region: &str) {
        self.container(region).stop_with_timeout(Some(90)).await.unwrap();
    }

    /// Ends the process of a zone of the primary's region, which is a container of its own.
    pub async fn kill_zone(&self, zone: char) {
        let network = &self.regions[0].network;
        self.docker.kill_container(&format!("{network}-az-{zone}"), None).await.unwrap();
    }

    /// Starts a zone again.
    pub async fn start_zone(&self, zone: char) {
        self.zone(zone).start().await.unwrap();
    }

    fn zone(&self, zone: char) -> &ContainerAsync<GenericImage> {
        &self.regions[0].zones.iter().find(|(name, _)| *name == zone).unwrap().1
    }

    /// Runs a shell's command as root in a region's container; what it prints.
    pub async fn inside(&self, region: &str, command: &str) -> String {
        shell(self.container(region), command).await
    }

    /// The same in a zone's.
    pub async fn inside_zone(&self, zone: char, command: &str) -> String {
        shell(self.zone(zone), command).await
    }

    /// Cuts a region off from all others; clients and operators still reach it.
    pub fn isolate(&self, region: &str) {
        let (index, regions) = (self.index(region), self.regions.len());
        self.wan.change(|weather| weather.isolate(index, regions));
    }

    /// Mends the network.
    pub fn heal(&self) {
        self.wan.change(Weather::heal);
    }

    // --- operators and clients

    fn file(&self) -> std::path::PathBuf {
        self.directory.path().join("regions.toml")
    }

    /// Runs the program as the operator.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program());
        command.args(arguments).arg("--config").arg(self.file());
        command.arg("--data").arg(self.directory.path().join("data")).output().unwrap()
    }

    /// What a command prints; it must succeed.
    pub fn printed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        // Its exit status says how well the regions are.
        let answered = arguments.first() == Some(&"status") && !output.stdout.is_empty();
        assert!(answered || output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    }

    /// `volume status --json` of a region.
    pub fn volume(&self, region: &str) -> serde_json::Value {
        serde_json::from_str(&self.printed(&["volume", "status", "--region", region, "--json"])).unwrap()
    }

    /// A command of the operator that goes on by itself.
    pub fn begin(&self, arguments: &[&str]) -> tokio::process::Child {
        let mut command = tokio::process::Command::new(program());
        command.args(arguments).arg("--config").arg(self.file());
        command.arg("--data").arg(self.directory.path().join("data")).spawn().unwrap()
    }

    /// The operator, for questions that are asked again and again.
    pub fn operator(&self) -> Operator {
        replicator_tests::operator(&self.file(), &self.directory.path().join("data"))
    }

    /// What a region's daemon has said.
    pub async fn said(&self, region: &str) -> String {
        text(&self.container(region).stderr_to_vec().await.unwrap())
    }

    /// `status --json`, if a daemon answers.
    pub fn try_status(&self) -> Option<serde_json::Value> {
        let output = self.run(&["status", "--json"]);
        (!output.stdout.is_empty()).then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Who leads; waits until somebody does.
    pub async fn primary(&self) -> String {
        let leader = || self.try_status().and_then(|status| Some(status["primary"].as_str()?.to_owned()));
        until("a region leads", || async { leader().is_some_and(|name| !name.is_empty()) }).await;
        leader().unwrap_or_default()
    }

    /// `promote --json`.
    pub async fn promote(&self, region: &str, mode: &str) -> serde_json::Value {
        let arguments = ["promote", "--region", region, "--mode", mode, "--json"];
        let output = tokio::task::block_in_place(|| self.run(&arguments));
        let words = text(&output.stderr);
        assert!(output.status.success(), "{words}");
        println!("{words}{}", text(&output.stdout));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Where clients find a region.
    pub fn url(&self, region: &str) -> String {
        let address = self.regions[self.index(region)].address.unwrap();
        format!("postgresql://postgres:{}@{address}:{POSTGRES}/postgres", self.password)
    }

    /// Clients that write to whichever region takes writes.
    pub async fn load(&self) -> Ledger {
        let urls = self.regions.iter().map(|region| self.url(region.name)).collect();
        let ledger = Ledger::start_at(urls, 4).await;
        ledger.until_written(200).await;
        ledger
    }

    /// A connection to a region, as soon as it takes one: a standby that was rewound may have applied all
    /// that there is a moment before it lets anybody in.
    pub async fn connect(&self, region: &str) -> PgConnection {
        connect_to(&self.url(region)).await
    }

    // --- what is left

    /// Waits until `primary` leads, every region streams, and all have everything.
    pub async fn until_level(&self, primary: &str) {
        until("all regions follow and are level", || async {
            self.try_status().is_some_and(|status| {
                let rows = status["regions"].as_array().unwrap();
                let level = |row: &serde_json::Value| row["state"] == "streaming" && row["behind_bytes"] == 0;
                status["primary"] == primary && rows.iter().all(level)
            })
        })
        .await;
    }

    /// The same under load: no region is more than a moment behind.
    pub async fn until_near(&self, primary: &str) {
        until("all regions follow and are near", || async {
            self.try_status().is_some_and(|status| {
                let rows = status["regions"].as_array().unwrap();
                let near = |row: &serde_json::Value| {
                    row["state"] == "streaming"
                        && row["behind_bytes"].as_u64().is_none_or(|bytes| bytes < 1 << 20)
                };
                status["primary"] == primary && rows.iter().all(near)
            })
        })
        .await;
    }

    /// Checks that all regions hold the same rows; returns the acknowledged ones that none has.
    pub async fn settle(&self, primary: &str, acknowledged: &Acknowledged) -> Vec<i64> {
        self.until_level(primary).await;
        let mut first = None;
        for Region { name, .. } in &self.regions {
            let mut connection = self.connect(name).await;
            let query = "SELECT count(*), md5(string_agg(id::text, ',' ORDER BY id)) FROM ledger";
            let held: (i64, String) = sqlx::query_as(query).fetch_one(&mut connection).await.unwrap();
            let missing = acknowledged.missing_in(&mut connection).await;
            let (expected, lost) = first.get_or_insert_with(|| (held.clone(), missing.clone()));
            assert_eq!(
                (&*expected, &*lost),
                (&held, &missing),
                "{name} differs from {}",
                self.regions[0].name
            );
        }
        first.unwrap().1
    }

    /// Whether a region keeps redo aside that a failover cut off.
    pub async fn keeps(&self, region: &str) -> bool {
        self.inside(region, "replicator lost list").await.contains("epoch")
    }

    // --- the end

    /// Writes down what every container said.
    pub async fn keep_logs(&self, directory: &Path) {
        std::fs::create_dir_all(directory).unwrap();
        for Region { name, container, zones, .. } in &self.regions {
            for (zone, container) in zones {
                let said = container.stderr_to_vec().await.unwrap_or_default();
                std::fs::write(directory.join(format!("{name}-az-{zone}.log")), said).unwrap();
            }
            let Some(container) = container else { continue };
            let said = container.stderr_to_vec().await.unwrap_or_default();
            std::fs::write(directory.join(format!("{name}.log")), said).unwrap();
            let log = format!("/var/lib/replicator/regions/{name}/postgresql.log");
            let path = directory.join(format!("{name}.postgresql.log"));
            // A region that never had data has none.
            let _ = container.copy_file_from(log, path).await;
        }
    }

    /// Removes all that was made.
    pub async fn remove(self) {
        for Region { network, container, zones, .. } in self.regions {
            for container in zones.into_iter().map(|(_, container)| container).chain(container) {
                container.rm().await.unwrap();
            }
            self.docker.remove_network(&network).await.unwrap();
        }
    }
}

/// Milliseconds without an acknowledged commit, at most, between two moments.
pub fn gap_ms(acknowledged: &Acknowledged, begin: Instant, end: Instant) -> u128 {
    acknowledged.longest_gap(begin, end).as_millis()
}

async fn shell(container: &ContainerAsync<GenericImage>, command: &str) -> String {
    let mut ran = container.exec(ExecCommand::new(["sh", "-c", command])).await.unwrap();
    let said = text(&ran.stdout_to_vec().await.unwrap());
    let errors = text(&ran.stderr_to_vec().await.unwrap());
    assert_eq!(ran.exit_code().await.unwrap(), Some(0), "{command}: {said}{errors}");
    said
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}
