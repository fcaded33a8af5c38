//! OPEN and CREATE: who is to read and write behind the handle, and what the kernel is told of it.

use std::ffi::OsStr;
use std::sync::Arc;

use fuser::{Errno, FileHandle, INodeNo, ReplyCreate, ReplyOpen, Request};

use super::convert;
use super::modes::{Answer, Opening};
use super::{GENERATION, UnionFs, caller, changing, kept, opening, reading, turned_away};
use crate::union::api::Ino;

impl UnionFs {
    /// Makes a file and opens it. `mode`: that of the file, and the umask.
    pub(super) fn create_file(
        &self,
        req: &Request,
        parent: Ino,
        name: &OsStr,
        (mode, umask): (u32, u32),
        flags: i32,
        reply: ReplyCreate,
    ) {
        let lane = changing([(parent, Some(name))]);
        let (caller, name) = (caller(req, umask), name.to_owned());
        let opening = opening(req, 0, flags);
        let modes = Arc::clone(&self.modes);
        let timeout = self.options.timeout;
        self.run("create", lane, move |union| {
            let (attr, fh) = match union.create(&caller, parent, &name, mode, flags) {
                Ok(made) => made,
                Err(e) => return reply.error(convert::errno("create", parent, &e)),
            };
            let data = union.backing(fh, None);
            let opening = Opening {
                node: attr.ino,
                ..opening
            };
            let unmoved = || union.is_of_lower(fh);
            let answer = modes.open(opening, data.as_ref(), unmoved, |fd| reply.open_backing(fd));
            let (attr, fh) = (convert::file_attr(&attr), FileHandle(fh));
            match answer {
                Answer::Plain(flags) => {
                    let flags = kept(flags, timeout);
                    reply.created(&timeout, &attr, GENERATION, fh, flags);
                }
                Answer::Backed(flags, id) => {
                    reply.created_passthrough(&timeout, &attr, GENERATION, fh, flags, &id);
                }
                // Nobody has opened what was made just now; and if so, nothing is lost.
                Answer::Away(away) => {
                    union.release(fh.0);
                    union.forget(attr.ino.0, 1);
                    reply.error(turned_away(away));
                }
            }
        });
    }

    /// Opens a file.
    pub(super) fn open_file(&self, req: &Request, node: INodeNo, flags: i32, reply: ReplyOpen) {
        if !self.opens.files {
            return self.here("open", || reply.error(Errno::ENOSYS));
        }
        let caller = caller(req, 0);
        let (modes, pages) = (Arc::clone(&self.modes), Arc::clone(&self.pages));
        let opening = opening(req, node.0, flags);
        let ino = self.object(node);
        let (lowers, timeout) = (self.lowers, self.options.timeout);
        self.run("open", reading(ino), move |union| {
            let fh = match union.open(&caller, ino, flags) {
                Ok(fh) => fh,
                Err(e) => return reply.error(convert::errno("open", ino, &e)),
            };
            let lowers = lowers.filter(|_| modes.undecided(node.0));
            let data = union.backing(fh, lowers.as_ref());
            let unmoved = || union.is_of_lower(fh);
            let answer = if data.is_none() && pages.wants(union, fh) {
                modes.open_filling(opening, unmoved, || pages.fill(union, node, fh))
            } else {
                modes.open(opening, data.as_ref(), unmoved, |fd| reply.open_backing(fd))
            };
            match answer {
                Answer::Plain(flags) => reply.opened(FileHandle(fh), kept(flags, timeout)),
                Answer::Backed(flags, id) => reply.opened_passthrough(FileHandle(fh), flags, &id),
                Answer::Away(away) => {
                    union.release(fh);
                    pages.drop_attributes(node.0);
                    reply.error(turned_away(away));
                }
            }
        });
    }
}
