//! What a service manager is told of a mount in the foreground, as sd_notify(3) has it: lines in one datagram
//! to the socket that `NOTIFY_SOCKET` names.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use crate::error::{best_effort, printable};

/// The variable that names the socket.
const SOCKET: &str = "NOTIFY_SOCKET";

/// The service manager, if there is one that wants to know.
#[derive(Clone, Debug, Default)]
pub struct Manager(Option<SocketAddr>);

impl Manager {
    /// The one that has started this process.
    pub fn of_environment() -> Manager {
        let Some(name) = env::var_os(SOCKET).filter(|name| !name.is_empty()) else {
            return Manager::default();
        };
        match address(&name) {
            Ok(address) => Manager(Some(address)),
            Err(e) => {
                tracing::warn!("{SOCKET}={}: {e}; it is told nothing", printable(&name));
                Manager::default()
            }
        }
    }

    /// The mount answers.
    pub fn ready(&self, mountpoint: &Path, layers: usize) {
        let status = format!("{} shows {layers} layers", printable(mountpoint));
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// The mount ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=unmounting");
    }

    fn tell(&self, lines: &str) {
        let Some(address) = &self.0 else { return };
        let sent = UnixDatagram::unbound()
            .and_then(|socket| socket.send_to_addr(lines.as_bytes(), address));
        best_effort("tell the service manager", sent);
    }
}

/// A path, or a name without a file that is written with `@` for its first byte, which is 0.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::other("neither an absolute path nor @NAME")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::process;

    fn said(to: &UnixDatagram) -> io::Result<String> {
        to.set_nonblocking(true)?;
        let mut buffer = [0; 200];
        let length = to.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    #[test]
    fn each_kind_of_socket_is_told() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("notify");
        let unnamed = format!("cvmfs-union-test-{}", process::id());
        let by_path = UnixDatagram::bind(&path)?;
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&unnamed)?)?;
        let unnamed = format!("@{unnamed}");
        for (name, socket) in [(path.as_os_str(), by_path), (unnamed.as_ref(), by_name)] {
            let manager = Manager(Some(address(name)?));
            manager.ready(Path::new("/a\nREADY=0"), 2);
            manager.stopping();
            let lines = "READY=1\nSTATUS=/a\\nREADY=0 shows 2 layers";
            assert_eq!(said(&socket)?, lines);
            assert_eq!(said(&socket)?, "STOPPING=1\nSTATUS=unmounting");
        }
        Ok(())
    }

    #[test]
    fn nobody_need_listen() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("absent");
        Manager(Some(address(path.as_os_str())?)).stopping();
        Manager::default().stopping();
        for name in ["relative", "vsock:2:1"] {
            assert!(address(OsStr::new(name)).is_err(), "{name}");
        }
        Ok(())
    }
}
