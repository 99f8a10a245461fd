//! `rustbalance-testnet`: a private Tor network from the command line.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustbalance_testnet::cluster::binary_beside;
use rustbalance_testnet::{Client, ENV_ARTI, ENV_DIR, ENV_SOCKS, Network, Options, Site, Warmth};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

mod bench;
mod cost;
mod demo;
mod idle;
mod steady;
mod wireguard;

const USAGE: &str = "\
A private Tor network of C tor processes on loopback.

  rustbalance-testnet up DIR [NETWORK] [--ready-file FILE]   boot it in DIR; stay until Ctrl-C, SIGTERM or the end of a piped input
  rustbalance-testnet run DIR [NETWORK] -- COMMAND...        boot it, run a command on it, end it; exit with the command's code
  rustbalance-testnet down DIR                               end the one in DIR, and what an earlier one left
  rustbalance-testnet status DIR                             say what runs in DIR
  rustbalance-testnet client DIR NAME [--warm] [--ready-file FILE]   start a stock client; stay as `up` does
  rustbalance-testnet get DIR URL [--fresh|--warm] [--timeout SECONDS]
                                                             fetch with the network's own client, or with a new one
  rustbalance-testnet published DIR ONION [--text]           say which directories hold which revision
  rustbalance-testnet site NAME                              serve a tiny web site on loopback; stay as `up` does
  rustbalance-testnet demo [--binary FILE]                   boot one, and show three nodes of RustBalance on it
  rustbalance-testnet bench [--binary FILE] [--starts N (3)] [--requests N (100)] [--bodies N (5)]
                                                             boot one, and compare RustBalance with a C tor onion service
  rustbalance-testnet idle [--binary FILE] [--nodes N (3)] [--scrape SECONDS] [--checks]
                                         boot one, and measure what N idle nodes cost; with
                                         --scrape again while each is asked for its metrics,
                                         with --checks also without and with checks of targets
                                         and the canary
  rustbalance-testnet cost [--binary FILE] [--beside FILE] [--bodies N (20)] [--requests N (240)] [--circuits N (1200)] [--threads N,...]
                                                             boot one, and compare what clients cost RustBalance and C tor;
                                                             with --threads, a node for each number of threads; with --beside, another build
  rustbalance-testnet steady [--binary FILE] [--minutes N (60)]
                                                             boot one, and measure the memory of three nodes over time
  rustbalance-testnet wireguard [--binary FILE] [--delay MS (40)] [--deaths N (5)] [--invitations N (10)]
                                                             boot one, and compare a cluster over Tor with one over WireGuard

NETWORK: --relays N (8)  --exits N (4)  --authorities N (3)  --voting-interval SECONDS (20)  --port-base PORT

`run` sets, for the command:
  RUSTBALANCE_TESTNET        DIR, which tests attach to
  RUSTBALANCE_TESTNET_SOCKS  127.0.0.1:PORT of the network's own client
  RUSTBALANCE_TESTNET_ARTI   the file with Arti's configuration
RUSTBALANCE_TESTNET_KEEP keeps the folders of clients, with tor's logs.";

fn main() -> ExitCode {
    let mut arguments = Arguments(std::env::args().skip(1).collect());
    let command = arguments.0.first().cloned().unwrap_or_default();
    if command.is_empty() || arguments.flag("--help") || arguments.flag("-h") || command == "help" {
        println!("{USAGE}");
        return ExitCode::from(if command.is_empty() { 2 } else { 0 });
    }
    arguments.0.remove(0);
    let done = match command.as_str() {
        "up" => up(arguments),
        "run" => run(arguments),
        "down" => down(arguments),
        "status" => status(arguments),
        "client" => client(arguments),
        "get" => get(arguments),
        "published" => published(arguments),
        "site" => site(arguments),
        "demo" => show(arguments),
        "bench" => measure(arguments),
        "idle" => watch_idle(arguments),
        "cost" => measure_cost(arguments),
        "steady" => watch_steady(arguments),
        "wireguard" => compare_routes(arguments),
        _ => Err(Usage(format!("there is no command {command:?}")).into()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("rustbalance-testnet: {error:#}");
        let is_usage = error.is::<Usage>();
        if is_usage {
            eprintln!("`rustbalance-testnet help` lists the commands.");
        }
        ExitCode::from(if is_usage { 2 } else { 1 })
    })
}

/// A mistake in the command line.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The arguments of the command line that have not been taken yet.
struct Arguments(Vec<String>);

impl Arguments {
    /// Takes a flag; returns whether it was there.
    fn flag(&mut self, name: &str) -> bool {
        let end = self.0.iter().position(|word| word == "--");
        let found = self.0[..end.unwrap_or(self.0.len())].iter().position(|word| word == name);
        found.map(|index| self.0.remove(index)).is_some()
    }

    /// Takes an option with its value; `None` if it is not there.
    fn option<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        let end = self.0.iter().position(|word| word == "--");
        let Some(index) = self.0[..end.unwrap_or(self.0.len())].iter().position(|word| word == name) else {
            return Ok(None);
        };
        self.0.remove(index);
        if index >= self.0.len() {
            return Err(Usage(format!("{name} needs a value")).into());
        }
        let value = self.0.remove(index);
        match value.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(Usage(format!("{value:?} is not a valid value for {name}")).into()),
        }
    }

    /// Takes the next argument, called `what` in the error.
    fn word(&mut self, what: &str) -> Result<String> {
        match self.0.first() {
            Some(word) if !word.starts_with('-') => Ok(self.0.remove(0)),
            _ => Err(Usage(format!("{what} is missing")).into()),
        }
    }

    /// Fails if any argument is left.
    fn end(self) -> Result<()> {
        match self.0.first() {
            Some(argument) => Err(Usage(format!("unexpected argument {argument:?}")).into()),
            None => Ok(()),
        }
    }

    /// Takes the arguments that describe a network.
    fn network(&mut self) -> Result<Options> {
        let mut options = Options::at(self.word("DIR")?);
        if let Some(relays) = self.option("--relays")? {
            options.relays = relays;
            options.exits = options.exits.min(relays);
        }
        options.exits = self.option("--exits")?.unwrap_or(options.exits);
        options.authorities = self.option("--authorities")?.unwrap_or(options.authorities);
        if let Some(seconds) = self.option("--voting-interval")? {
            options.voting_interval = Duration::from_secs(seconds);
        }
        options.port_base = self.option("--port-base")?;
        Ok(options)
    }
}

/// The events that a command which stays waits for.
enum Event {
    Signal(i32),
    InputEnded,
    CommandEnded(std::io::Result<std::process::ExitStatus>),
}

/// Reports the signals that ask this process to end, instead of ending it, from now on.
fn events() -> Result<(std::sync::mpsc::Sender<Event>, Receiver<Event>)> {
    let (sender, receiver) = channel();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot watch signals")?;
    let for_thread = sender.clone();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if for_thread.send(Event::Signal(signal)).is_err() {
                break;
            }
        }
    });
    Ok((sender, receiver))
}

/// Stays until asked to end: by a signal, or by the end of the input if that is a pipe. The end of
/// a terminal's input or of `/dev/null` does not count.
fn stay(
    sender: std::sync::mpsc::Sender<Event>,
    receiver: &Receiver<Event>,
    mut alive: impl FnMut() -> Result<()>,
) -> Result<ExitCode> {
    let is_pipe = std::fs::metadata("/proc/self/fd/0")
        .is_ok_and(|input| input.file_type().is_fifo() || input.file_type().is_socket());
    if is_pipe {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = sender.send(Event::InputEnded);
        });
    }
    loop {
        match receiver.recv_timeout(Duration::from_secs(1)) {
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return Ok(ExitCode::SUCCESS),
            Err(RecvTimeoutError::Timeout) => alive()?,
        }
    }
}

/// Boots a network, unless a signal comes first.
fn boot(options: Options, receiver: &Receiver<Event>) -> Result<Option<Network>> {
    let (sender, booted) = channel();
    std::thread::spawn(move || {
        let network = Network::boot_with_progress(options, |line| eprintln!("{line}"));
        let _ = sender.send(network);
    });
    loop {
        match booted.recv_timeout(Duration::from_millis(50)) {
            Ok(network) => return network.map(Some),
            Err(RecvTimeoutError::Disconnected) => bail!("booting the network panicked"),
            Err(RecvTimeoutError::Timeout) => {}
        }
        // The process ends now, and the reaper ends what has been started.
        if receiver.try_recv().is_ok() {
            return Ok(None);
        }
    }
}

fn up(mut arguments: Arguments) -> Result<ExitCode> {
    let ready: Option<PathBuf> = arguments.option("--ready-file")?;
    let options = arguments.network()?;
    arguments.end()?;
    let (sender, receiver) = events()?;
    let Some(network) = boot(options, &receiver)? else {
        return Ok(ExitCode::from(130));
    };
    describe(&network);
    println!("Ctrl-C ends it.");
    write_ready_file(ready, &network.socks().to_string())?;
    stay(sender, &receiver, || Ok(()))
}

fn run(mut arguments: Arguments) -> Result<ExitCode> {
    let options = arguments.network()?;
    if arguments.0.first().is_none_or(|word| word != "--") {
        return Err(Usage("a command is missing, after --".into()).into());
    }
    let words = arguments.0.split_off(1);
    let Some((program, rest)) = words.split_first() else {
        return Err(Usage("a command is missing, after --".into()).into());
    };
    let (sender, receiver) = events()?;
    let Some(network) = boot(options, &receiver)? else {
        return Ok(ExitCode::from(130));
    };
    let mut child = Command::new(program)
        .args(rest)
        .env(ENV_DIR, network.base())
        .env(ENV_SOCKS, network.socks().to_string())
        .env(ENV_ARTI, network.base().join("arti.toml"))
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let pid = rustix::process::Pid::from_child(&child);
    std::thread::spawn(move || sender.send(Event::CommandEnded(child.wait())));
    let mut asked = 0;
    loop {
        match receiver.recv().context("cannot wait for the command")? {
            Event::CommandEnded(status) => {
                let status = status.context("cannot wait for the command")?;
                let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
                return Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
            }
            Event::Signal(signal) => {
                asked += 1;
                // The first Ctrl-C on a terminal has reached the command directly, so it is not
                // passed on. Any second signal kills the command.
                let passed_on = match (signal, asked) {
                    (SIGINT, 1) => None,
                    (_, 1) => Some(rustix::process::Signal::TERM),
                    _ => Some(rustix::process::Signal::KILL),
                };
                if let Some(signal) = passed_on {
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
            Event::InputEnded => {}
        }
    }
}

fn down(mut arguments: Arguments) -> Result<ExitCode> {
    let base = PathBuf::from(arguments.word("DIR")?);
    arguments.end()?;
    println!("{}", Network::end(&base)?);
    Ok(ExitCode::SUCCESS)
}

fn status(mut arguments: Arguments) -> Result<ExitCode> {
    let base = PathBuf::from(arguments.word("DIR")?);
    arguments.end()?;
    describe(&Network::attach(&base)?);
    Ok(ExitCode::SUCCESS)
}

fn client(mut arguments: Arguments) -> Result<ExitCode> {
    let warmth = warmth(&mut arguments)?.unwrap_or(Warmth::Fresh);
    let ready: Option<PathBuf> = arguments.option("--ready-file")?;
    let base = PathBuf::from(arguments.word("DIR")?);
    let name = arguments.word("NAME")?;
    arguments.end()?;
    let (sender, receiver) = events()?;
    let network = Network::attach(&base)?;
    let client = network.client(&name, warmth)?;
    println!("{}", client.socks());
    write_ready_file(ready, &client.socks().to_string())?;
    stay(sender, &receiver, || if client.is_running() { Ok(()) } else { bail!("the client {name} has ended") })
}

fn get(mut arguments: Arguments) -> Result<ExitCode> {
    let warmth = warmth(&mut arguments)?;
    let timeout = Duration::from_secs(arguments.option("--timeout")?.unwrap_or(60));
    let base = PathBuf::from(arguments.word("DIR")?);
    let url = arguments.word("URL")?;
    arguments.end()?;
    let network = Network::attach(&base)?;
    let own: Option<Client> = match warmth {
        Some(warmth) => Some(network.client("get", warmth)?),
        None => None,
    };
    let answer = own.as_ref().unwrap_or_else(|| network.main_client()).get(&url, timeout)?;
    eprintln!("status {}, {} bytes, {:.2} s", answer.status, answer.body.len(), answer.elapsed.as_secs_f64());
    use std::io::Write;
    std::io::stdout().write_all(&answer.body)?;
    if answer.body.last().is_some_and(|byte| *byte != b'\n') {
        println!();
    }
    Ok(ExitCode::from(u8::from(answer.status >= 400)))
}

fn published(mut arguments: Arguments) -> Result<ExitCode> {
    let text = arguments.flag("--text");
    let base = PathBuf::from(arguments.word("DIR")?);
    let onion = arguments.word("ONION")?;
    arguments.end()?;
    let network = Network::attach(&base)?;
    let published = network.published(&onion)?;
    for descriptor in &published {
        let nickname = network
            .relays()
            .iter()
            .find(|relay| relay.rsa_fingerprint == descriptor.relay)
            .map_or("?", |relay| relay.nickname.as_str());
        println!("{nickname:8} {} revision {}", descriptor.relay, descriptor.revision);
        if text {
            println!("{}", descriptor.text);
        }
    }
    eprintln!("{} of {} relays hold a descriptor", published.len(), network.relays().len());
    Ok(ExitCode::SUCCESS)
}

fn site(mut arguments: Arguments) -> Result<ExitCode> {
    let ready: Option<PathBuf> = arguments.option("--ready-file")?;
    let name = arguments.word("NAME")?;
    arguments.end()?;
    let (sender, receiver) = events()?;
    let site = Site::start(&name)?;
    println!("{}", site.addr());
    write_ready_file(ready, &site.addr().to_string())?;
    stay(sender, &receiver, || Ok(()))
}

fn show(mut arguments: Arguments) -> Result<ExitCode> {
    let binary = binary(&mut arguments)?;
    arguments.end()?;
    until_asked_to_end(move || demo::demo(binary))
}

fn measure(mut arguments: Arguments) -> Result<ExitCode> {
    let binary = binary(&mut arguments)?;
    let extent = bench::BenchSizes {
        starts: arguments.option("--starts")?.unwrap_or(3),
        requests: arguments.option("--requests")?.unwrap_or(100),
        bodies: arguments.option("--bodies")?.unwrap_or(5),
    };
    arguments.end()?;
    until_asked_to_end(move || bench::bench(binary, &extent))
}

fn measure_cost(mut arguments: Arguments) -> Result<ExitCode> {
    let binary = binary(&mut arguments)?;
    let sizes = cost::CostSizes {
        bodies: arguments.option("--bodies")?.unwrap_or(20),
        requests: arguments.option("--requests")?.unwrap_or(240),
        circuits: arguments.option("--circuits")?.unwrap_or(1200),
        threads: thread_numbers(&mut arguments)?,
        beside: arguments.option("--beside")?,
    };
    arguments.end()?;
    until_asked_to_end(move || cost::cost(binary, sizes))
}

/// The numbers of `--threads`, separated by commas.
fn thread_numbers(arguments: &mut Arguments) -> Result<Vec<usize>> {
    let Some(text) = arguments.option::<String>("--threads")? else { return Ok(Vec::new()) };
    let numbers = text.split(',').map(|number| number.parse().ok().filter(|number| *number > 0));
    let numbers: Option<Vec<usize>> = numbers.collect();
    numbers.ok_or_else(|| Usage(format!("{text:?} is not a valid value for --threads")).into())
}

fn watch_idle(mut arguments: Arguments) -> Result<ExitCode> {
    let binary = binary(&mut arguments)?;
    let nodes = arguments.option("--nodes")?.unwrap_or(3);
    let scrape = arguments.option("--scrape")?.map(Duration::from_secs);
    let checks = arguments.flag("--checks");
    arguments.end()?;
    until_asked_to_end(move || idle::idle(binary, nodes, scrape, checks))
}

fn watch_steady(mut arguments: Arguments) -> Result<ExitCode> {
    let binary = binary(&mut arguments)?;
    let minutes = arguments.option("--minutes")?.unwrap_or(60);
    arguments.end()?;
    until_asked_to_end(move || steady::steady(binary, minutes))
}

fn compare_routes(mut arguments: Arguments) -> Result<ExitCode> {
    let binary = binary(&mut arguments)?;
    let sizes = wireguard::WireguardSizes {
        delay: Duration::from_millis(arguments.option("--delay")?.unwrap_or(40)),
        deaths: arguments.option("--deaths")?.unwrap_or(5),
        invitations: arguments.option("--invitations")?.unwrap_or(10),
    };
    arguments.end()?;
    until_asked_to_end(move || wireguard::wireguard(&binary, sizes))
}

/// The daemon's program: the one that `--binary` names, or the one that cargo puts beside this
/// program.
fn binary(arguments: &mut Arguments) -> Result<PathBuf> {
    arguments.option("--binary")?.map_or_else(binary_beside, Ok)
}

/// Runs `work`, unless a signal comes first; then this process ends, and the reaper ends what has
/// been started.
fn until_asked_to_end(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<ExitCode> {
    let (_sender, receiver) = events()?;
    let working = std::thread::spawn(work);
    loop {
        if working.is_finished() {
            return match working.join() {
                Ok(done) => done.map(|()| ExitCode::SUCCESS),
                Err(_) => bail!("a thread of this program panicked"),
            };
        }
        if receiver.recv_timeout(Duration::from_millis(50)).is_ok() {
            eprintln!("\nended before it was done; cleaning up");
            return Ok(ExitCode::from(130));
        }
    }
}

/// Takes `--fresh` or `--warm`.
fn warmth(arguments: &mut Arguments) -> Result<Option<Warmth>> {
    match (arguments.flag("--fresh"), arguments.flag("--warm")) {
        (true, true) => Err(Usage("--fresh and --warm exclude each other".into()).into()),
        (true, false) => Ok(Some(Warmth::Fresh)),
        (false, true) => Ok(Some(Warmth::Warm)),
        (false, false) => Ok(None),
    }
}

/// Writes `text` to the ready file, whole at once.
fn write_ready_file(file: Option<PathBuf>, text: &str) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, format!("{text}\n"))
        .and_then(|()| std::fs::rename(&fresh, &file))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn describe(network: &Network) {
    println!("folder         {}", network.base().display());
    println!("owner          process {}", network.owner());
    println!("processes      {}", network.processes());
    println!("SOCKS          {}", network.socks());
    println!("Arti           {}", network.base().join("arti.toml").display());
    println!(
        "time period    {} s, the next begins in {} s",
        network.time_period_length().as_secs(),
        network.next_time_period().as_secs()
    );
    println!("nickname role       ORPort control RSA fingerprint");
    for relay in network.relays() {
        println!(
            "{:8} {:10} {:6} {:7} {} {}",
            relay.nickname,
            format!("{:?}", relay.role).to_lowercase(),
            relay.or_port,
            relay.control_port,
            relay.rsa_fingerprint,
            if relay.is_running() { "" } else { "(not running)" }
        );
    }
}
