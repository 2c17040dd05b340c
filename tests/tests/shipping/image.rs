//! The Dockerfile and what is sent to its builder.

use crate::text;

fn instructions() -> Vec<String> {
    let joined = text("Dockerfile").replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

fn all(instruction: &str) -> Vec<String> {
    let lines = instructions();
    let of = lines.iter().filter_map(|line| line.strip_prefix(instruction)?.strip_prefix(' '));
    of.map(str::to_owned).collect()
}

/// RunPod's Hub starts the command as it stands here.
#[test]
fn the_command_is_the_worker_and_nothing_stands_before_it() {
    assert_eq!(all("CMD"), [r#"["brightrun", "worker"]"#]);
    assert_eq!(all("ENTRYPOINT"), ["[]"]);
}

#[test]
fn the_bases_are_pinned_and_of_the_same_kind() {
    let bases = all("FROM");
    let parts: Vec<(&str, &str)> = bases.iter().map(|base| base.split_once("@sha256:").unwrap()).collect();
    assert!(parts.iter().all(|(_, digest)| digest.split(' ').next().unwrap().len() == 64), "{bases:?}");
    let [(build, _), (run, _)] = parts[..] else { panic!("{bases:?}") };
    // The same CUDA and the same C library.
    assert!(build.starts_with("nvidia/cuda:") && build.contains("-devel-"), "{build}");
    assert_eq!(build.replace("-devel-", "-runtime-"), run);
    assert!(run.contains("-ubuntu"), "the Hub's tests need an Ubuntu: {run}");
}

#[test]
fn the_compiler_is_the_one_of_the_workspace_and_what_is_fetched_has_a_hash() {
    let manifest = text("Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    let steps = all("RUN").concat();
    assert!(steps.contains(&format!("--default-toolchain {version}.")), "{steps}");
    assert!(steps.contains("cargo build --locked --release"));
    assert!(!steps.contains("curl ") && !steps.contains("wget "));
    for fetched in all("ADD") {
        assert!(fetched.contains("--checksum=sha256:"), "{fetched}");
    }
}

#[test]
fn nothing_secret_and_no_port_is_in_it() {
    assert_eq!((all("ARG"), all("EXPOSE"), all("USER"), all("VOLUME")), (vec![], vec![], vec![], vec![]));
    for line in all("ENV").into_iter().chain(all("LABEL")) {
        let upper = line.to_uppercase();
        assert!(
            !["SECRET", "TOKEN", "PASSWORD", "API_KEY", "ACCESS_KEY"].iter().any(|word| upper.contains(word)),
            "{line}"
        );
    }
}

#[test]
fn the_builder_gets_the_workspace_and_nothing_else() {
    let ignored = text(".dockerignore");
    let lines: Vec<&str> = ignored.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines[0], "*", "only what is named goes there");
    let manifest = text("Cargo.toml");
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let members: Vec<String> = serde_json::from_str(members).unwrap();
    for needed in members.iter().map(String::as_str).chain(["Cargo.toml", "Cargo.lock"]) {
        assert!(lines.contains(&format!("!{needed}").as_str()), "{needed}");
    }
    let copied = all("COPY").into_iter().find(|line| line.contains("LICENSE")).unwrap();
    for licence in copied.split(' ').filter(|name| name.starts_with("LICENSE")) {
        assert!(lines.contains(&format!("!{licence}").as_str()), "{licence}");
    }
    for never in ["**/target", "**/.env*"] {
        assert!(lines.contains(&never), "{never}");
    }
}
