//! Over real TLS, with certificates made here.

use std::sync::Arc;

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_worker::net::{Names, certificates_from_pem};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivatePkcs8KeyDer},
};

use crate::{Bench, body, says};

const HOST: &str = "data.example.test";

/// A server for this name, and its certificate as an operator would have it.
async fn server(name: &str) -> (FaultServer, String) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([name.to_owned()]).unwrap();
    let pem = format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        base64_simd::STANDARD.encode_to_string(cert.der())
    );
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .unwrap();
    (FaultServer::start_with_tls(TlsAcceptor::from(Arc::new(config))).await.unwrap(), pem)
}

fn bench(servers: &[&FaultServer], pem: &str) -> Bench {
    let mut bench = Bench::new(servers);
    bench.policy.plain_http = false;
    bench.policy.network.names = Names::with(|_| Ok(vec![[127, 0, 0, 1].into()]));
    bench.policy.network.extra_root_certificates = certificates_from_pem(pem.as_bytes()).unwrap();
    bench
}

fn url(server: &FaultServer, path: &str) -> String {
    format!("https://{HOST}:{}{path}", server.address().port())
}

#[tokio::test]
async fn an_authority_of_the_operators_is_trusted() {
    let (server, pem) = server(HOST).await;
    let content = body(500_000);
    let good = Reply::file(content.clone()).etag("\"a\"");
    server.on("/d", [good.clone().cut_after(300_000), good]);
    let fetched = bench(&[&server], &pem).expect(&url(&server, "/d?token=x"), &content).await;
    assert_eq!((fetched.resumed, server.count("/d")), (1, 2));
}

#[tokio::test]
async fn a_server_that_cannot_prove_its_name_gets_no_request() {
    let (right, _) = server(HOST).await;
    let (other, pem) = server("other.example.test").await;
    let servers = [&right, &other];
    // Not signed by an authority that is known.
    says(&bench(&servers, &pem).fails(&url(&right, "/d?token=x")).await, "Untrusted", "is not trusted: ");
    // Known, but for another name.
    says(&bench(&servers, &pem).fails(&url(&other, "/d?token=x")).await, "Untrusted", "not valid for name");
    assert!(right.seen().is_empty() && other.seen().is_empty());
}

#[tokio::test]
async fn encryption_is_not_given_up_by_a_redirect() {
    let (server, pem) = server(HOST).await;
    let plain = FaultServer::start().await.unwrap();
    plain.on("/d", [Reply::file("x")]);
    server.on("/d", [Reply::redirect(302, &plain.url("/d"))]);
    let mut bench = bench(&[&server, &plain], &pem);
    // Even where plain links are allowed.
    bench.policy.plain_http = true;
    says(&bench.fails(&url(&server, "/d")).await, "RefusedRedirect", "not encrypted");
    assert!(plain.seen().is_empty());
    bench.expect(&plain.url("/d"), b"x").await;
}

#[tokio::test]
async fn a_server_without_tls_behind_an_https_link_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let (_, pem) = server(HOST).await;
    let mut bench = bench(&[], &pem);
    bench.policy.network.allowed_addresses = vec![address];
    let error = bench.fails(&format!("https://{HOST}:{}/d", address.port())).await;
    says(&error, "Unreachable", "no encrypted connection");
}

#[test]
fn what_is_no_certificate_is_refused() {
    for text in ["", "-----BEGIN CERTIFICATE-----\n?", "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n"] {
        assert!(certificates_from_pem(text.as_bytes()).is_err(), "{text}");
    }
}
