//! A folder for the database: on a small file system of its own where one can be mounted.

use std::path::{Path, PathBuf};
use std::process::Command;

use support::scratch;

/// Far more than a campaign needs. It takes memory as it is used.
const SIZE: &str = "size=2g";
/// How often the file system may grow while it is made full.
const TRIES: u64 = 20;

/// Unmounted when it is dropped.
pub(crate) struct Disk {
    pub(crate) folder: PathBuf,
    /// It can be made full.
    pub(crate) is_mounted: bool,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let folder = scratch();
        let is_mounted = mount(&folder, &format!("{SIZE},mode=0755"));
        if !is_mounted {
            eprintln!("SKIPPED: full disks: no file system can be mounted here");
        }
        Self { folder, is_mounted }
    }

    /// Takes away all room that is not used. False: it could not.
    pub(crate) fn fill(&self) -> bool {
        (1..TRIES).any(|tries| {
            // A file system is never made smaller than what is used, and that grows meanwhile.
            let kibibytes = self.used() + 4 * tries;
            mount(&self.folder, &format!("remount,size={kibibytes}k"))
        })
    }

    /// Gives the room back.
    pub(crate) fn free(&self) {
        assert!(mount(&self.folder, &format!("remount,{SIZE}")), "it can be made larger again");
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

/// Whether a file system is there, with these options.
fn mount(folder: &Path, options: &str) -> bool {
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder);
    mount.output().is_ok_and(|output| output.status.success())
}
