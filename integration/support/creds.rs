//! Who makes a system call: ids, groups and capabilities of one thread.

use super::isolated;

pub const CAP_CHOWN: u32 = 0;
pub const CAP_DAC_OVERRIDE: u32 = 1;
pub const CAP_DAC_READ_SEARCH: u32 = 2;
pub const CAP_FOWNER: u32 = 3;
pub const CAP_FSETID: u32 = 4;
pub const CAP_SYS_ADMIN: u32 = 21;
pub const CAP_MKNOD: u32 = 27;
pub const CAP_SETFCAP: u32 = 31;

/// The ids and rights of a caller.
#[derive(Clone, Debug)]
pub struct Creds {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    caps: Caps,
}

#[derive(Clone, Debug)]
enum Caps {
    All,
    AllBut(Vec<u32>),
    Only(Vec<u32>),
}

impl Creds {
    pub fn root() -> Creds {
        Creds {
            name: "root".into(),
            uid: 0,
            gid: 0,
            groups: vec![0],
            caps: Caps::All,
        }
    }

    /// Root, without some of its capabilities.
    pub fn root_without(name: &str, caps: &[u32]) -> Creds {
        Creds {
            name: format!("root without {name}"),
            caps: Caps::AllBut(caps.to_vec()),
            ..Creds::root()
        }
    }

    pub fn user(uid: u32, gid: u32, groups: &[u32]) -> Creds {
        Creds {
            name: format!("{uid}:{gid} of {groups:?}"),
            uid,
            gid,
            groups: groups.to_vec(),
            caps: Caps::Only(Vec::new()),
        }
    }

    /// The user with some of root's capabilities.
    pub fn with(self, name: &str, caps: &[u32]) -> Creds {
        Creds {
            name: format!("{} with {name}", self.name),
            caps: Caps::Only(caps.to_vec()),
            ..self
        }
    }

    /// Runs the body as this caller, on a thread of its own with umask 022.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        isolated(|| {
            self.take_on();
            body()
        })
    }

    /// By raw calls, which change this thread only.
    fn take_on(&self) {
        let call = |result: i64| assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        let bits = |caps: &[u32]| caps.iter().fold(0u64, |all, cap| all | 1 << cap);
        let mut header = [0x2008_0522_u32, 0];
        let mut data = [0u32; 6];
        // SAFETY: the structures have the sizes that this version of the call says.
        unsafe {
            call(libc::syscall(
                libc::SYS_capget,
                header.as_mut_ptr(),
                data.as_mut_ptr(),
            ));
        }
        let had = u64::from(data[1]) | u64::from(data[4]) << 32;
        let caps = match &self.caps {
            Caps::All => had,
            Caps::AllBut(without) => had & !bits(without),
            Caps::Only(only) => bits(only),
        };
        let (low, high) = (caps as u32, (caps >> 32) as u32);
        let data = [low, low, 0, high, high, 0];
        let (uid, gid) = (self.uid, self.gid);
        // SAFETY: the list has as many groups as is said, the structures the sizes of this version.
        unsafe {
            let groups = self.groups.as_ptr();
            call(libc::syscall(
                libc::SYS_setgroups,
                self.groups.len(),
                groups,
            ));
            call(libc::prctl(libc::PR_SET_KEEPCAPS, 1).into());
            call(libc::syscall(libc::SYS_setresgid, gid, gid, gid));
            call(libc::syscall(libc::SYS_setresuid, uid, uid, uid));
            call(libc::syscall(
                libc::SYS_capset,
                header.as_ptr(),
                data.as_ptr(),
            ));
        }
    }
}
