//! A folder for the database: on its own small file system where one can be mounted.

use std::path::{Path, PathBuf};
use std::process::Command;

use support::scratch;

/// Far more than a campaign needs. The file system takes memory only for what it stores.
const SIZE: &str = "size=2g";
/// The number of attempts to fill the file system, which grows at the same time.
const TRIES: u64 = 20;

/// The folder of the database. Unmounts its file system when dropped.
pub(crate) struct Disk {
    pub(crate) folder: PathBuf,
    /// Whether it is its own file system, and can be filled.
    pub(crate) is_mounted: bool,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let folder = scratch();
        let is_mounted = mount(&folder, &format!("{SIZE},mode=0755"));
        if !is_mounted {
            support::skip("full disks: no file system can be mounted");
        }
        Self { folder, is_mounted }
    }

    /// Shrinks the file system to its used size. Returns false if that failed.
    pub(crate) fn fill(&self) -> bool {
        (1..TRIES).any(|tries| {
            // A file system cannot shrink below its used size, which grows between the two steps.
            let kibibytes = self.used() + 4 * tries;
            mount(&self.folder, &format!("remount,size={kibibytes}k"))
        })
    }

    /// Restores the size of the file system.
    pub(crate) fn free(&self) {
        assert!(mount(&self.folder, &format!("remount,{SIZE}")), "the file system grows again");
    }

    fn used(&self) -> u64 {
        let df = Command::new("df").args(["-k", "--output=used"]).arg(&self.folder).output();
        let text = String::from_utf8(df.unwrap().stdout).unwrap();
        text.lines().last().unwrap().trim().parse().unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
        }
    }
}

/// Mounts a file system with these options, and returns whether that succeeded.
fn mount(folder: &Path, options: &str) -> bool {
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder);
    mount.output().is_ok_and(|output| output.status.success())
}
