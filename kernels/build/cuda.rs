//! nvcc makes one compressed fat binary of each file, for all architectures that it knows of those we mean; what its assembler
//! says of each kernel is kept beside it and becomes a table of the program.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
};

/// A100; A40, 3090; L40, 4090; H100, H200; B200; 5090. The `a` is for instructions that only Hopper has.
const ARCHITECTURES: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];
/// Other architectures than these, with spaces between them: one makes a build shorter.
const CHOICE: &str = "BRIGHTRUN_CUDA_ARCHITECTURES";
const HOMES: [&str; 2] = ["CUDA_HOME", "CUDA_PATH"];

/// The oldest that knows the architectures and what kernels are written in.
const OLDEST: u32 = 12080;

/// The compiler, and of which CUDA it is, as the driver counts: 13000 is 13.0.
struct Nvcc {
    path: PathBuf,
    version: u32,
}

/// One source file, compiled.
struct Compiled {
    file: String,
    kernels: Vec<String>,
    fatbin: PathBuf,
    resources: Vec<Resources>,
}

/// What the assembler said of one kernel.
#[derive(Default, Clone)]
struct Resources {
    kernel: String,
    architecture: String,
    registers: u32,
    shared: u32,
    stack: u32,
    spills: u32,
}

pub(crate) fn build(kernels: &[PathBuf]) -> io::Result<()> {
    HOMES.iter().chain([&CHOICE]).for_each(|name| println!("cargo:rerun-if-env-changed={name}"));
    let nvcc = nvcc()?;
    let architectures = architectures(&nvcc)?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo names no OUT_DIR"))?);
    // Those for the emulator only have no kernel for cards.
    let work: Vec<&PathBuf> = kernels.iter().filter(|path| !path.starts_with("cuda/emulator")).collect();
    let (next, done) = (Mutex::new(0), Mutex::new(BTreeMap::new()));
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    thread::scope(|scope| {
        for _ in 0..jobs.min(work.len()) {
            scope.spawn(|| {
                while let Some(source) = take(&next, &work) {
                    let compiled = compile(&nvcc, &architectures, source, &out);
                    done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(source.clone(), compiled);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let compiled = done.into_values().filter_map(Result::transpose).collect::<io::Result<Vec<_>>>()?;
    fs::write(out.join("fatbins.rs"), table(&nvcc, &compiled))
}

fn take<'a>(next: &Mutex<usize>, work: &[&'a PathBuf]) -> Option<&'a PathBuf> {
    let mut next = next.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let source = work.get(*next).copied();
    *next += 1;
    source
}

fn nvcc() -> io::Result<Nvcc> {
    let homes = HOMES.iter().filter_map(|name| Some(PathBuf::from(env::var_os(name)?).join("bin/nvcc")));
    let mut found = String::new();
    for path in homes.chain([PathBuf::from("nvcc")]) {
        let Some(output) = Command::new(&path).arg("--version").output().ok().filter(|output| output.status.success())
        else {
            continue;
        };
        match version(&String::from_utf8_lossy(&output.stdout)) {
            Some(version) if version >= OLDEST => return Ok(Nvcc { path, version }),
            Some(version) => found = format!("; {} is of {}.{}", path.display(), version / 1000, version % 1000 / 10),
            None => found = format!("; {} does not say which it is of", path.display()),
        }
    }
    let reason = "the feature `cuda` needs nvcc of CUDA 12.8 or newer: set CUDA_HOME to a toolkit, \
                  or run `kernels/cuda/toolkit FOLDER`, which installs one from Python packages, and set CUDA_HOME=FOLDER";
    Err(io::Error::other(format!("{reason}{found}")))
}

/// From "… release 13.0, V13.0.88".
fn version(said: &str) -> Option<u32> {
    let (major, rest) = said.split_once("release ")?.1.split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some(1000 * major.parse::<u32>().ok()? + 10 * minor.parse::<u32>().ok()?)
}

/// Those of ours that this compiler knows.
fn architectures(nvcc: &Nvcc) -> io::Result<Vec<String>> {
    if let Ok(choice) = env::var(CHOICE) {
        return Ok(choice.split_whitespace().map(str::to_owned).collect());
    }
    let known = Command::new(&nvcc.path).arg("--list-gpu-code").output()?;
    let known = String::from_utf8_lossy(&known.stdout).into_owned();
    let knows = |name: &&str| known.lines().any(|line| line.trim() == format!("sm_{}", name.trim_end_matches('a')));
    Ok(ARCHITECTURES.into_iter().filter(knows).map(str::to_owned).collect())
}

/// What the compiler is to think of: the kernels ask nothing of a card that the first of its family has not, and one pass of the
/// compiler for all of a family saves a third of the time. The assembler has them one by one.
fn family(architecture: &str) -> &str {
    match architecture {
        "86" | "87" | "89" => "80",
        "103" | "120" | "121" => "100",
        own => own,
    }
}

/// Nothing where the kernels are for none of the architectures.
fn compile(nvcc: &Nvcc, architectures: &[String], source: &Path, out: &Path) -> io::Result<Option<Compiled>> {
    let text = fs::read_to_string(source)?;
    let named = |word: &str| -> Vec<String> {
        let name = |line: &str| Some(line.trim().strip_prefix(word)?.strip_prefix('(')?.strip_suffix(')')?.to_owned());
        text.lines().filter_map(name).collect()
    };
    let (kernels, only) = (named("KERNEL"), named("ONLY_FOR"));
    let architectures: Vec<&String> =
        architectures.iter().filter(|name| only.is_empty() || only.contains(name)).collect();
    if architectures.is_empty() {
        return Ok(None);
    }
    let stem = source.with_extension("").to_string_lossy().replace(['/', '.'], "_");
    let (fatbin, report) = (out.join(format!("{stem}.fatbin")), out.join(format!("{stem}.report")));
    let mut flags: Vec<String> =
        ["-std=c++17", "-O3", "-t0", "-Xptxas", "-v", "-Xfatbin", "-compress-all", "--fatbin", "-I", "cuda"]
            .map(str::to_owned)
            .into();
    let mut families: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for name in &architectures {
        families.entry(family(name)).or_default().push(format!("sm_{name}"));
    }
    // What newer cards than these compile for themselves.
    if let Some(last) = architectures.last().filter(|_| only.is_empty()) {
        let newest = family(last).trim_end_matches('a');
        families.entry(newest).or_default().push(format!("compute_{newest}"));
    }
    flags.extend(
        families.iter().map(|(family, code)| format!("-gencode=arch=compute_{family},code=[{}]", code.join(","))),
    );
    let made_by = format!("{} {} {}\n", nvcc.path.display(), nvcc.version, flags.join(" "));
    if !is_current(&report, source, &made_by)? {
        let output = Command::new(&nvcc.path).args(&flags).arg("-o").arg(&fatbin).arg(source).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(io::Error::other(format!("nvcc cannot compile {}:\n{said}", source.display())));
        }
        // Says the assembler where it makes each `wgmma` wait for the one before.
        if let Some(line) = said.lines().find(|line| line.contains("wgmma") && line.contains("serialized")) {
            return Err(io::Error::other(format!("{}: {line}", source.display())));
        }
        fs::write(&report, made_by + &said)?;
    }
    let resources = resources(&fs::read_to_string(&report)?);
    let file = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Some(Compiled { file, kernels, fatbin, resources }))
}

/// Whether the report is that of the same command, and newer than every file that it follows from.
fn is_current(report: &Path, source: &Path, made_by: &str) -> io::Result<bool> {
    let Ok(made) = fs::metadata(report).and_then(|found| found.modified()) else { return Ok(false) };
    if !fs::read_to_string(report)?.starts_with(made_by) {
        return Ok(false);
    }
    let mut inputs = vec![source.to_owned()];
    for header in fs::read_dir("cuda")? {
        inputs.push(header?.path());
    }
    // A header beside the source.
    for neighbour in fs::read_dir(source.parent().unwrap_or(Path::new(".")))? {
        inputs.push(neighbour?.path());
    }
    for input in inputs.iter().filter(|path| path.is_file()) {
        if fs::metadata(input)?.modified()? > made {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads the assembler's report: for each kernel and architecture two lines with numbers.
fn resources(report: &str) -> Vec<Resources> {
    let number = |line: &str, unit: &str| -> u32 {
        let before = line.split(unit).next().unwrap_or_default();
        let digits = before.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        if line.contains(unit) { digits.parse().unwrap_or(0) } else { 0 }
    };
    let mut found = Vec::new();
    let mut current = Resources::default();
    for line in report.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let mut quoted = rest.split('\'');
            let kernel = quoted.next().unwrap_or_default().to_owned();
            let architecture = quoted.nth(1).unwrap_or_default().to_owned();
            current = Resources { kernel, architecture, ..Resources::default() };
        } else if line.contains("bytes stack frame") {
            current.stack = number(line, " bytes stack frame");
            current.spills = number(line, " bytes spill stores") + number(line, " bytes spill loads");
        } else if line.contains("Used ") && line.contains(" registers") {
            current.registers = number(line, " registers");
            current.shared = number(line, " bytes smem");
            found.push(current.clone());
        }
    }
    found
}

fn table(nvcc: &Nvcc, compiled: &[Compiled]) -> String {
    let mut text =
        format!("/// The CUDA that compiled them.\npub(super) const COMPILED_BY: u32 = {};\n\n", nvcc.version);
    text.push_str("pub(super) static FATBINS: &[Fatbin] = &[\n");
    for Compiled { file, kernels, fatbin, .. } in compiled {
        let _ = writeln!(
            text,
            "    Fatbin {{ file: {file:?}, kernels: &{kernels:?}, bytes: &Aligned(*include_bytes!({:?})) }},",
            fatbin.to_string_lossy()
        );
    }
    text.push_str("];\n\n/// What each kernel takes of each card.\npub static RESOURCES: &[Resources] = &[\n");
    for Resources { kernel, architecture, registers, shared, stack, spills } in
        compiled.iter().flat_map(|compiled| &compiled.resources)
    {
        let _ = writeln!(
            text,
            "    Resources {{ kernel: {kernel:?}, architecture: {architecture:?}, registers: {registers}, \
             shared: {shared}, stack: {stack}, spills: {spills} }},"
        );
    }
    text + "];\n"
}
