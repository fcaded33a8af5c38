//! System calls, one a wrapper: the only place for `unsafe`.
//!
//! Each wrapper takes borrowed descriptors and byte names, follows no symlink in the last component,
//! and returns the kernel's error untouched. Retries and fallbacks live with the callers.

pub mod children;
pub mod copy;
pub mod dirent;
pub mod fault;
pub mod file;
pub mod fscontext;
pub mod kernel;
pub mod meta;
pub mod mount;
pub mod mounts;
pub mod name;
pub mod namespace;
pub mod process;
pub mod readonly;
pub mod realpath;
pub mod xattr;

use std::ffi::{CStr, CString};
use std::io;

/// Turns the result of a raw call into an `io::Result`.
fn check(ret: libc::c_int) -> io::Result<libc::c_int> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// Whether a call has failed because the descriptor was opened with `O_PATH`: its name in `/proc` takes
/// the same call.
fn is_path_only<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(e) if e.raw_os_error() == Some(libc::EBADF))
}

fn check_len(ret: isize) -> io::Result<usize> {
    usize::try_from(ret).map_err(|_| io::Error::last_os_error())
}

fn cstr(name: &[u8]) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The empty path of the `AT_EMPTY_PATH` calls.
const EMPTY: &CStr = c"";
