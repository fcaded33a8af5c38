//! What is opened before a mount is served: the union, and the device.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::mountpoint::recover;
use super::{Job, UPPER_PATIENCE};
use crate::cli::layers::Layer;
use crate::cli::upper::Prepared;
use crate::cli::{Code, Failure, OrFail, Outcome};
use crate::layer::Learning;
use crate::sys::{mount, process};
use crate::text;
use crate::union::Union;
use crate::union::api::{Durability, Limits, Owner, UnionConfig, Whiteouts};

impl Job {
    /// What other commands are told of the mount.
    pub(super) fn about(&self, upper: &Prepared) -> Value {
        let layers = self.layers.iter().map(Layer::json);
        let image = (self.args.lower.is_empty()).then(|| self.args.paths.first());
        json!({
            "backend": self.chosen.backend.name(),
            "image": image.flatten().map(text::of_path),
            "layers": layers.collect::<Vec<_>>(),
            "mountpoint": text::of_path(&self.mountpoint),
            "upper": upper.paths.as_ref().map(|(upper, _)| text::of_path(upper)),
            "work": upper.paths.as_ref().map(|(_, work)| text::of_path(work)),
            "owner": self.args.owner,
        })
    }

    pub(super) fn open_union(
        &self,
        upper: &Prepared,
        limits: Limits,
        learning: Option<Learning>,
    ) -> Outcome<Union> {
        let config = UnionConfig {
            lowers: self.layers.iter().map(Layer::spec).collect(),
            upper: upper.spec(),
            apart: self.apart,
            whiteouts: match self.args.whiteouts.as_str() {
                "overlay" => Whiteouts::Overlay,
                "wh" => Whiteouts::Wh,
                _ => Whiteouts::Auto,
            },
            portable_upper: self.args.portable_upper,
            owner: if self.args.owner == "squash" {
                Owner::Squash
            } else {
                Owner::Keep
            },
            shown: self.shown.clone(),
            durability: match self.args.durability.as_str() {
                "full" => Durability::Full,
                "volatile" => Durability::Volatile,
                _ => Durability::Auto,
            },
            limits,
            learning,
        };
        let begun = Instant::now();
        loop {
            match Union::new(&config) {
                Err(e) if is_taken(e.errno()) && begun.elapsed() < UPPER_PATIENCE => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(e) if is_taken(e.errno()) => {
                    let text = format!("the upper is in use by another mount: {e}");
                    return Err(Failure::new(Code::Upper, text));
                }
                Err(e) => {
                    let code = if e.layer().is_some() {
                        Code::Layer
                    } else {
                        Code::Upper
                    };
                    return Err(e).or_fail(code, "opening the union");
                }
                Ok(union) => return Ok(union),
            }
        }
    }

    /// Mounts; the path is what to unmount later, None for a descriptor that others have mounted.
    pub(super) fn mount(&mut self) -> Outcome<(OwnedFd, Option<PathBuf>)> {
        if let Some(device) = self.device.take() {
            return Ok((device, None));
        }
        let shown = self.mountpoint.display();
        if let Some(fd) = mount::passed_fd(&self.mountpoint) {
            let fd = mount::take_passed_fd(fd).or_fail(Code::Mountpoint, shown)?;
            return Ok((fd, None));
        }
        recover(&self.mountpoint)?;
        let mounted = if process::is_root() {
            mount::mount_direct(&self.mountpoint, &self.how)
        } else {
            mount::mount_fusermount(&self.mountpoint, &self.how)
        };
        Ok((
            mounted.or_fail(Code::Mountpoint, shown)?,
            Some(self.mountpoint.clone()),
        ))
    }
}

pub(super) fn is_taken(errno: i32) -> bool {
    matches!(errno, libc::EBUSY | libc::EWOULDBLOCK)
}
