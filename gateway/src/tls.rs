//! The certificate of the TLS door: the operator's, or one that is made here for trying it out.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tracing::info;

use crate::config::{Certificate, Tls};

/// Names of this machine as its own clients use them, and with a key before them. Most TLS libraries let a wildcard stand
/// only before two labels or more, so there is a second one that they accept.
const DEV_NAMES: [&str; 5] = ["localhost", "*.localhost", "*.ufb.localhost", "127.0.0.1", "::1"];

/// Only HTTP/1.1 is spoken: WebSocket clients ask for nothing else.
const ALPN: &[u8] = b"http/1.1";

/// Loads the certificate, or makes a self-signed one in `data_dir/tls` and keeps it, so that a client that was told to
/// trust it goes on to.
///
/// # Errors
///
/// A file that cannot be read, written, or parsed, by name.
pub fn server_config(settings: &Tls, data_dir: &Path) -> Result<Arc<ServerConfig>> {
    let files = match &settings.certificate {
        Some(files) => files.clone(),
        None => dev_certificate(&data_dir.join("tls"))?,
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.chain)
        .with_context(|| format!("cannot read the certificate {}", files.chain.display()))?
        .collect();
    let chain = chain.with_context(|| format!("{} is no PEM certificate", files.chain.display()))?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .with_context(|| format!("cannot read the private key {}", files.key.display()))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| anyhow!("the certificate {} cannot be used: {error}", files.chain.display()))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

fn dev_certificate(directory: &Path) -> Result<Certificate> {
    let files = Certificate { chain: directory.join("cert.pem"), key: directory.join("key.pem") };
    if files.chain.exists() && files.key.exists() {
        return Ok(files);
    }
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(DEV_NAMES.map(str::to_owned))?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    // The key first: a certificate without its key would be taken for complete by nobody.
    write(&files.key, &signing_key.serialize_pem(), 0o600)?;
    write(&files.chain, &cert.pem(), 0o644)?;
    info!(certificate = %files.chain.display(), "made a self-signed certificate; clients have to be told to trust it");
    Ok(files)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}
