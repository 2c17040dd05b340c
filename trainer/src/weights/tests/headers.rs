use super::*;
use proptest::prelude::*;

/// Writes these bytes as the checkpoint and expects a refusal.
#[track_caller]
fn refused_bytes(bytes: &[u8], texts: &[&str]) {
    let model = Damaged::plain();
    std::fs::write(model.dir().join("model.safetensors"), bytes).unwrap();
    let error = Checkpoint::open(model.dir(), &model.config).unwrap_err();
    contains(&error, texts);
    contains(&error, &["model.safetensors"]);
}

fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

#[test]
fn empty_file_is_refused() {
    refused_bytes(b"", &["found 0 bytes"]);
}

#[test]
fn header_longer_than_the_file_is_refused() {
    refused_bytes(&[1000u64.to_le_bytes().as_slice(), b"{}"].concat(), &["length of 1000 bytes, expected at most 2"]);
}

#[test]
fn huge_header_length_is_refused() {
    refused_bytes(&[u64::MAX.to_le_bytes().as_slice(), b"{}"].concat(), &["18446744073709551615"]);
}

#[test]
fn header_that_is_no_json_is_refused() {
    refused_bytes(&with_header("{\"a\": nonsense}", 0), &["not a valid safetensors header"]);
}

#[test]
fn overlapping_tensors_are_refused() {
    let header =
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    refused_bytes(&with_header(header, 6), &["header", "`b`"]);
}

#[test]
fn a_hole_between_tensors_is_refused() {
    let header =
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[8,12]}}"#;
    refused_bytes(&with_header(header, 12), &["header", "`b`"]);
}

#[test]
fn negative_offsets_are_refused() {
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}}"#;
    refused_bytes(&with_header(header, 4), &["header"]);
}

#[test]
fn overflowing_shape_is_refused() {
    let side = u64::MAX / 2;
    let header = format!(r#"{{"a":{{"dtype":"F32","shape":[{side},{side}],"data_offsets":[0,4]}}}}"#);
    refused_bytes(&with_header(&header, 4), &["header"]);
}

#[test]
fn offsets_that_do_not_fit_the_shape_are_refused() {
    let header = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}"#;
    refused_bytes(&with_header(header, 4), &["header"]);
}

#[test]
fn unknown_type_is_refused() {
    let header = r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#;
    refused_bytes(&with_header(header, 4), &["F31"]);
}

#[test]
fn truncated_data_is_refused() {
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    refused_bytes(&with_header(header, 3), &["truncated", "4 bytes of tensors, found 3"]);
    refused_bytes(&with_header(header, 5), &["followed by foreign bytes", "4 bytes of tensors, found 5"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_files_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), honest_length in any::<bool>()) {
        let model = Damaged { config: small_config(), tensors: Vec::new(), folder: tempfile::tempdir().unwrap() };
        let bytes = if honest_length { with_header(&String::from_utf8_lossy(&bytes), 8) } else { bytes };
        std::fs::write(model.dir().join("model.safetensors"), bytes).unwrap();
        prop_assert!(Checkpoint::open(model.dir(), &model.config).is_err());
    }

    #[test]
    fn mutated_headers_are_refused_or_read_in_bounds(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let header = r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}}"#;
        let mut bytes = with_header(header, 19);
        for (place, byte) in places {
            let place = place.index(8 + header.len());
            bytes[place] = byte;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, bytes).unwrap();
        if let Ok(file) = SafetensorsFile::open(path) {
            for (name, stored) in file.tensors() {
                let mut data = vec![0; stored.bytes];
                prop_assert!(file.read_at(&name, &stored, 0, &mut data).is_ok());
            }
        }
    }
}

fn small_config() -> ModelConfig {
    ModelConfig::read(&fixtures().join("qwen3_next_s1/base")).unwrap()
}
