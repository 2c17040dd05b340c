//! Without a bucket.

use brightrun_worker::storage::upload::{Artifact, Place, Store};

use crate::{Bench, says};

#[tokio::test]
async fn files_stay_here_and_that_is_said() {
    let bench = Bench::new(Store::Local).file("a/b.json", b"{}").file("c", b"");
    let delivered = bench.deliver().await.unwrap();
    let addresses = delivered.addresses();
    let url: url::Url = addresses["a/b.json"].parse().unwrap();
    assert_eq!(std::fs::read(url.to_file_path().unwrap()).unwrap(), b"{}");
    assert!(delivered.files.iter().all(|file| !file.sent && matches!(file.place, Place::File(_))));
    assert!(delivered.warnings[0].contains("file://"), "{:?}", delivered.warnings);
}

#[tokio::test]
async fn what_cannot_be_delivered_is_refused_at_the_door() {
    let bench = Bench::new(Store::Local);
    says(&bench.fails().await, "Nothing", "no file to deliver");
    let path = bench.folder.path().join("x");
    std::fs::write(&path, "x").unwrap();
    for names in [&["../x"][..], &["ä"], &["a?b"], &["/a"], &["same", "same"]] {
        let mut bench = Bench::new(Store::Local);
        bench.files = names.iter().map(|name| Artifact { name: (*name).into(), path: path.clone() }).collect();
        says(&bench.fails().await, "Name", "rename it");
    }
    let bench = Bench::new(Store::Local).file("a", b"x");
    bench.cancel.cancel();
    says(&bench.fails().await, "Cancelled", "cancelled");
}
