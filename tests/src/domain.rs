use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;

use crate::{Builder, Surroundings};

const NAMES: [&str; 2] = ["*.browsers.example.com", "127.0.0.1"];

/// The domain `*.browsers.example.com`, as an operator sets one up: a certificate for it, and names that lead here.
#[derive(Debug)]
pub struct Domain {
    directory: TempDir,
}

impl Domain {
    /// # Errors
    ///
    /// Its files could not be written.
    pub fn new() -> Result<Self> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(NAMES.map(str::to_owned))?;
        let domain = Self { directory: tempfile::tempdir()? };
        fs::write(domain.certificate(), cert.pem())?;
        fs::write(domain.key(), signing_key.serialize_pem())?;
        fs::write(domain.hosts(), "127.0.0.1 localhost\n")?;
        Ok(domain)
    }

    /// A gateway whose TLS door has the certificate.
    #[must_use]
    pub fn served_by(&self, gateway: Builder) -> Builder {
        gateway.set("EDGE_TLS_CERT", self.certificate().display()).set("EDGE_TLS_KEY", self.key().display())
    }

    /// Lets `LABEL.browsers.example.com` lead to this machine.
    ///
    /// # Errors
    ///
    /// The file could not be written.
    pub fn lead_here(&self, label: &str) -> Result<()> {
        let hosts = fs::read_to_string(self.hosts())? + &format!("127.0.0.1 {label}.browsers.example.com\n");
        Ok(fs::write(self.hosts(), hosts)?)
    }

    /// Where clients trust the certificate and find the names.
    #[must_use]
    pub fn surroundings(&self) -> Surroundings {
        let certificate = self.certificate().display().to_string();
        Surroundings {
            environment: vec![("NODE_EXTRA_CA_CERTS", certificate.clone()), ("SSL_CERT_FILE", certificate)],
            hosts: Some(self.hosts()),
        }
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    fn hosts(&self) -> PathBuf {
        self.directory.path().join("hosts")
    }
}
