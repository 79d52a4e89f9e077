//! What it costs to take datagrams in: the collector beside a loop that only receives and counts, and beside other
//! servers where they are there.
//!
//! `make bench-ingest` runs it. A seeded sender of our own (`sendmmsg`, on one processor) sends at a given rate; each
//! subject (on the other one) takes it in turn. Reported are processor seconds per million samples, from the scheduler's own
//! account of the process, the highest rate at which the kernel drops less than 0.1 % (its own count, from `/proc/net/udp`),
//! and memory. The peers are `statsd_exporter` and `brubeck`, by `STATSD_EXPORTER=path` and `BRUBECK=path` or on the `PATH`.

#![allow(missing_docs, unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[cfg(target_os = "linux")]
mod peers;

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("this measures with sendmmsg, recvmmsg and /proc: Linux only");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fmt::Write as _;
    use std::fs;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd as _;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    const CONTEXTS: usize = 1_000;
    const PAYLOAD_BYTES: usize = 1_432;
    const BATCH: usize = 32;
    const LOSS_MAX: f64 = 0.001;

    /// What the datagrams are made of.
    #[derive(Clone, Copy)]
    pub(super) struct Shape {
        name: &'static str,
        words: &'static str,
        is_packed: bool,
        is_mixed: bool,
        /// Samples a second at which processor time is measured: below what every subject takes without loss.
        rate: f64,
        wanted: &'static str,
    }

    const SHAPES: [Shape; 3] = [
        Shape {
            name: "A",
            words: "1 sample a datagram, counters",
            is_packed: false,
            is_mixed: false,
            rate: 60_000.0,
            wanted: "at most 1.25 x the floor",
        },
        Shape {
            name: "B",
            words: "packed datagrams, counters",
            is_packed: true,
            is_mixed: false,
            rate: 1_000_000.0,
            wanted: "at most 0.12 s",
        },
        Shape {
            name: "B mixed",
            words: "packed datagrams, 60 % counters, 20 % gauges, 20 % histograms",
            is_packed: true,
            is_mixed: true,
            rate: 1_000_000.0,
            wanted: "at most 0.16 s",
        },
    ];

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) as usize) % bound
        }
    }

    /// Datagrams of a shape, with the samples in each: enough that no cache remembers them, the same in every run.
    fn datagrams(shape: Shape) -> Vec<(Vec<u8>, usize)> {
        let mut random = Random(7);
        let mut line = |out: &mut String| {
            let context = random.below(CONTEXTS);
            let (kind, value) = match (shape.is_mixed, context % 10) {
                (true, 6 | 7) => ('g', random.below(1_000) as f64),
                (true, 8 | 9) => ('h', (1 + random.below(100_000)) as f64 / 1e4),
                _ => ('c', 1.0),
            };
            write!(out, "requests_{kind}{}:{value}|{kind}|#model:v{},zone:eu-1", context % 50, context / 50).unwrap();
        };
        (0..4_096)
            .map(|_| {
                let (mut datagram, mut samples) = (String::new(), 0);
                loop {
                    let mut next = String::new();
                    line(&mut next);
                    if samples > 0 && (!shape.is_packed || datagram.len() + 1 + next.len() > PAYLOAD_BYTES) {
                        return (datagram.into_bytes(), samples);
                    }
                    if samples > 0 {
                        datagram.push('\n');
                    }
                    datagram += &next;
                    samples += 1;
                }
            })
            .collect()
    }

    fn pin(cpu: usize) {
        // SAFETY: a set of CPUs is an array of integers, for which zeros are valid; it outlives the call.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
        }
    }

    /// One header for each vector.
    fn headers(vectors: &mut [libc::iovec]) -> Vec<libc::mmsghdr> {
        let header = |vector| {
            // SAFETY: mmsghdr is a C struct of integers and pointers, for which zeros are valid.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header
        };
        vectors.iter_mut().map(|vector| header(vector)).collect()
    }

    /// Sends for `seconds` at `rate` samples a second (0: as fast as it goes); prints how many datagrams and samples.
    fn send(port: u16, shape: Shape, rate: f64, seconds: f64) {
        pin(1);
        let datagrams = datagrams(shape);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(("127.0.0.1", port)).unwrap();
        let mut vectors: Vec<libc::iovec> = datagrams
            .iter()
            .map(|(bytes, _)| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() })
            .collect();
        let mut headers = headers(&mut vectors);
        let start = Instant::now();
        let (mut at, mut sent_datagrams, mut sent_samples) = (0, 0_u64, 0_u64);
        while start.elapsed().as_secs_f64() < seconds {
            if rate > 0.0 && sent_samples as f64 > start.elapsed().as_secs_f64() * rate {
                thread::sleep(Duration::from_micros(200));
                continue;
            }
            let batch = &mut headers[at..at + BATCH];
            // SAFETY: each header points to a vector, and that to a datagram, which live until the end.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), batch.as_mut_ptr(), BATCH as u32, 0) };
            assert!(sent > 0, "{}", std::io::Error::last_os_error());
            for (_, samples) in &datagrams[at..at + sent as usize] {
                sent_datagrams += 1;
                sent_samples += *samples as u64;
            }
            at = (at + BATCH) % datagrams.len();
        }
        println!("{sent_datagrams} {sent_samples} {}", start.elapsed().as_secs_f64());
    }

    /// The floor: receives as the collector does, and counts.
    fn floor(port: u16) {
        pin(0);
        let socket = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        let bytes: libc::c_int = 8 << 20;
        // SAFETY: the pointer and the size are those of an integer that outlives the call.
        unsafe {
            let size = size_of::<libc::c_int>() as libc::socklen_t;
            let pointer = (&raw const bytes).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, pointer, size);
        }
        let mut buffers = vec![vec![0_u8; 65_535]; BATCH];
        let mut vectors: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
            .collect();
        let mut headers = headers(&mut vectors);
        let mut bytes = 0_u64;
        loop {
            let flags = libc::MSG_WAITFORONE;
            // SAFETY: each header points to a vector, and that to a buffer, which live as long as the process.
            let count = unsafe {
                libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), BATCH as u32, flags, std::ptr::null_mut())
            };
            for header in headers.iter().take(count.max(0) as usize) {
                bytes += u64::from(header.msg_len);
            }
            std::hint::black_box(bytes);
        }
    }

    /// A server under measurement; ends with its value.
    struct Subject {
        name: &'static str,
        child: Child,
        port: u16,
        _folder: tempfile::TempDir,
    }

    impl Drop for Subject {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn free_port() -> u16 {
        UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn start(name: &'static str) -> Option<Subject> {
        let (port, http) = (free_port(), free_port());
        let folder = tempfile::tempdir().unwrap();
        let on_cpu_0 = |program: &Path| {
            let mut command = Command::new("taskset");
            command.args(["-c", "0"]).arg(program);
            command
        };
        let mut command = match name {
            "floor" => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["floor", &port.to_string()]);
                command
            }
            "cortex-collector" => {
                let mut command = on_cpu_0(Path::new(env!("CARGO_BIN_EXE_cortex-collector")));
                command.arg("--listen-udp").arg(format!("127.0.0.1:{port}"));
                command.arg("--listen-http").arg(format!("127.0.0.1:{http}")).arg("--data-dir").arg(folder.path());
                command
            }
            "statsd_exporter" => {
                let mut command = on_cpu_0(&crate::peers::statsd_exporter()?);
                command.args([format!("--statsd.listen-udp=127.0.0.1:{port}"), "--statsd.listen-tcp=".into()]);
                command.args([format!("--web.listen-address=127.0.0.1:{http}"), "--statsd.read-buffer=8388608".into()]);
                command
            }
            _ => {
                // Without a backend it ends at the first metric; nobody listens at that port.
                let config = format!(
                    r#"{{"sharding": false, "server_name": "b", "dumpfile": "/dev/null", "capacity": 15,
                        "backends": [{{"type": "carbon", "address": "127.0.0.1", "port": {http}, "frequency": 10}}],
                        "samplers": [{{"type": "statsd", "address": "127.0.0.1", "port": {port}, "workers": 1, "multimsg": 32}}]}}"#
                );
                fs::write(folder.path().join("brubeck.json"), config).unwrap();
                let mut command = on_cpu_0(&crate::peers::brubeck()?);
                command.arg("--config").arg(folder.path().join("brubeck.json"));
                command
            }
        };
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let subject = Subject { name, child, port, _folder: folder };
        let until = Instant::now() + Duration::from_secs(10);
        while subject.socket().is_none() {
            assert!(Instant::now() < until, "{name} does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(Duration::from_millis(300));
        Some(subject)
    }

    impl Subject {
        /// Bytes that wait in its socket, and datagrams that the kernel dropped there.
        fn socket(&self) -> Option<(u64, u64)> {
            let wanted = format!(":{:04X}", self.port);
            ["/proc/net/udp", "/proc/net/udp6"].iter().find_map(|table| {
                let text = fs::read_to_string(table).ok()?;
                let line = text
                    .lines()
                    .skip(1)
                    .find(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&wanted)))?;
                let fields: Vec<&str> = line.split_whitespace().collect();
                let waiting = u64::from_str_radix(fields[4].split_once(':')?.1, 16).ok()?;
                Some((waiting, fields.last()?.parse().ok()?))
            })
        }

        /// Seconds that its threads have run.
        fn cpu_seconds(&self) -> f64 {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
            let nanoseconds: u64 = tasks
                .filter_map(|task| fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
                .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
                .sum();
            nanoseconds as f64 / 1e9
        }

        fn memory_mib(&self) -> f64 {
            let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
            let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
        }

        /// Sends to it.
        fn load(&self, shape: usize, rate: f64, seconds: f64) -> Load {
            let (_, drops_before) = self.socket().unwrap();
            let cpu_before = self.cpu_seconds();
            let sender = Command::new(std::env::current_exe().unwrap())
                .args(["send", &self.port.to_string(), &shape.to_string(), &rate.to_string(), &seconds.to_string()])
                .output()
                .unwrap();
            let until = Instant::now() + Duration::from_secs(10);
            while self.socket().unwrap().0 > 0 && Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
            }
            thread::sleep(Duration::from_millis(50));
            let text = String::from_utf8(sender.stdout).unwrap();
            let numbers: Vec<f64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
            let (datagrams, samples, seconds) = (numbers[0], numbers[1], numbers[2]);
            let dropped = (self.socket().unwrap().1 - drops_before) as f64;
            Load {
                loss: dropped / datagrams,
                rate: samples / seconds,
                cpu_per_million: (self.cpu_seconds() - cpu_before) / (samples * (1.0 - dropped / datagrams)) * 1e6,
            }
        }
    }

    struct Load {
        loss: f64,
        rate: f64,
        cpu_per_million: f64,
    }

    fn median(mut values: Vec<f64>) -> f64 {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    pub(super) fn main() {
        let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
        let number = |at: usize| arguments[at].parse::<f64>().unwrap();
        match arguments.first().map(String::as_str) {
            Some("send") => return send(number(1) as u16, SHAPES[number(2) as usize], number(3), number(4)),
            Some("floor") => return floor(number(1) as u16),
            _ => {}
        }
        let is_quick = arguments.iter().any(|argument| argument == "quick");
        let (rounds, seconds) = if is_quick { (1, 0.5) } else { (5, 3.0) };
        let names = ["floor", "cortex-collector", "statsd_exporter", "brubeck"];
        for (at, shape) in SHAPES.iter().enumerate() {
            println!("\n{}: {}; {CONTEXTS} contexts; wanted: {}\n", shape.name, shape.words, shape.wanted);
            println!(
                "  {:<18}{:>22}{:>12}{:>24}{:>12}",
                "", "CPU s / million", "x floor", "samples/s, loss<0.1%", "MiB"
            );
            let subjects: Vec<Subject> = names.iter().filter_map(|name| start(name)).collect();
            for name in names.iter().filter(|name| subjects.iter().all(|subject| subject.name != **name)) {
                println!("  {name:<18}is not on this machine: {}=path says where", name.to_uppercase());
            }
            let mut cpu = vec![Vec::new(); subjects.len()];
            for _ in 0..rounds {
                for (subject, cpu) in subjects.iter().zip(&mut cpu) {
                    cpu.push(subject.load(at, shape.rate, seconds).cpu_per_million);
                }
            }
            let cpu: Vec<f64> = cpu.into_iter().map(median).collect();
            for (subject, cpu_per_million) in subjects.iter().zip(&cpu) {
                let (mut rate, mut highest) = (shape.rate, 0.0_f64);
                loop {
                    let load = subject.load(at, rate, seconds / 2.0);
                    if load.loss < LOSS_MAX {
                        highest = highest.max(load.rate);
                    }
                    // The sender's own limit, or the subject's.
                    if load.loss >= LOSS_MAX || load.rate < 0.9 * rate || is_quick {
                        break;
                    }
                    rate *= 1.2;
                }
                let ratio = cpu_per_million / cpu[0];
                let memory = subject.memory_mib();
                println!("  {:<18}{cpu_per_million:>22.3}{ratio:>12.2}{highest:>24.0}{memory:>12.1}", subject.name);
            }
        }
    }
}
