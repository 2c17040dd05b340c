use super::*;

fn halves(model: &Damaged) -> (Vec<Raw>, Vec<Raw>) {
    let (first, second) = model.tensors.split_at(model.tensors.len() / 2);
    (first.to_vec(), second.to_vec())
}

#[track_caller]
fn refused_index(edit: impl Fn(&mut serde_json::Value), texts: &[&str]) {
    let model = Damaged::plain();
    let (first, second) = halves(&model);
    write_shards(&model, &first, &second, edit);
    contains(&Checkpoint::open(model.dir(), &model.config).unwrap_err(), texts);
}

#[test]
fn index_may_not_leave_the_folder() {
    for path in [
        "../one.safetensors",
        "/etc/one.safetensors",
        "sub/one.safetensors",
        "..\\one.safetensors",
        ".",
        "c:x.safetensors",
    ] {
        refused_index(
            |index| index["weight_map"]["model.norm.weight"] = path.into(),
            &["model.safetensors.index.json", "weight_map.model.norm.weight", "in this folder"],
        );
    }
}

#[test]
fn index_with_a_number_for_a_file_is_refused() {
    refused_index(|index| index["weight_map"]["x"] = 3.into(), &["weight_map.x: found 3"]);
}

#[test]
fn index_without_a_map_is_refused() {
    refused_index(|index| index["weight_map"] = "all".into(), &["weight_map: found \"all\""]);
    refused_index(|index| index["weight_map"] = serde_json::json!({}), &["weight_map: found {}"]);
}

#[test]
fn missing_shard_is_named() {
    refused_index(|index| index["weight_map"]["x"] = "three.safetensors".into(), &["cannot open", "three.safetensors"]);
}

#[test]
fn tensor_that_its_shard_lacks_is_named() {
    refused_index(
        |index| index["weight_map"]["x"] = "one.safetensors".into(),
        &["index.json", "x: expected in one.safetensors, found in no shard"],
    );
}

#[test]
fn tensor_in_another_shard_than_the_index_says_is_named() {
    let model = Damaged::plain();
    let (first, _) = halves(&model);
    let name = first[0].name.clone();
    refused_index(
        |index| index["weight_map"][&name] = "two.safetensors".into(),
        &[&format!("{name}: expected in two.safetensors, found in"), "one.safetensors"],
    );
}

#[test]
fn tensor_in_two_shards_is_named() {
    let model = Damaged::plain();
    let (first, mut second) = halves(&model);
    second.push(first[0].clone());
    write_shards(&model, &first, &second, |_| ());
    let error = Checkpoint::open(model.dir(), &model.config).unwrap_err();
    contains(&error, &[&first[0].name, "found in both", "one.safetensors", "two.safetensors"]);
}

#[test]
fn truncated_shard_is_named() {
    let model = Damaged::plain();
    let (first, second) = halves(&model);
    write_shards(&model, &first, &second, |_| ());
    let path = model.dir().join("two.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    contains(&Checkpoint::open(model.dir(), &model.config).unwrap_err(), &["two.safetensors", "truncated"]);
}
