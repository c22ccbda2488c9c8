//! Laying a quarantined directory to rest, so that its node can begin anew under another id.
//!
//! What is retired is moved, never changed: `DIR/retired-<node>-<n>/` holds the old identity,
//! watermark and databases. The file RETIRING, durable before the first move, names the target;
//! whoever opens the directory next finishes what it began, so a crash leaves either the old
//! directory or an empty one. One retired generation is kept: an older one goes when the next
//! stands whole.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::StoreError;
use crate::identity::{self, Home};
use crate::rocks::home::{Directory, io_error, sync_dir};
use crate::types::Identity;

const MARKER: &str = "RETIRING";
const PREFIX: &str = "retired-";
/// What belongs to a node id. LOCK stays: it is held.
const MOVED: [&str; 4] = ["WATERMARK", "log", "events", "IDENTITY"];

/// Whose directory this is, read without opening or locking it. `None`: nobody's; one that is
/// being retired counts as that.
pub fn peek_identity(dir: &Path) -> Result<Option<Identity>, StoreError> {
    let (file, marker) = (dir.join("IDENTITY"), dir.join(MARKER));
    if marker
        .try_exists()
        .map_err(io_error("looking for", &marker))?
    {
        return Ok(None);
    }
    match fs::read(&file) {
        Ok(bytes) => identity::decode(&bytes).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("reading", &file)(error)),
    }
}

/// Moves what a directory holds aside and says where to; afterwards it is empty and can be made
/// anew. Refused while a process has it open ([`StoreError::Locked`]), or when there is nothing
/// ([`StoreError::Empty`]).
pub fn retire(dir: &Path) -> Result<PathBuf, StoreError> {
    let home = Directory::lock(dir, false)?;
    if let Some(done) = finish(&home, dir)? {
        return Ok(done);
    }
    let exists = |name: &str| {
        let path = dir.join(name);
        path.try_exists().map_err(io_error("looking for", &path))
    };
    let mut any = false;
    for name in MOVED {
        any |= exists(name)?;
    }
    if !any {
        return Err(StoreError::Empty { path: home.path() });
    }
    // Of a damaged identity nobody knows the id: 0, which is never given.
    let node = match peek_identity(dir) {
        Ok(Some(identity)) => identity.node.0,
        _ => 0,
    };
    let mut name = String::new();
    for number in 1_u32.. {
        name = format!("{PREFIX}{node}-{number}");
        if !exists(&name)? {
            break;
        }
    }
    home.write_whole(MARKER, name.as_bytes())?;
    tracing::warn!(node, to = %name, "the data directory is laid to rest");
    match finish(&home, dir)? {
        Some(done) => Ok(done),
        None => Err(StoreError::Io(format!("{MARKER} is gone"))),
    }
}

/// Finishes a retirement that a crash cut, if there is one. The directory is locked.
pub(crate) fn finish(home: &Directory, dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let marker = dir.join(MARKER);
    let name = match fs::read_to_string(&marker) {
        Ok(name) => name,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("reading", &marker)(error)),
    };
    // It is joined to the path below: nothing but a name of ours.
    if !name.starts_with(PREFIX) || name.contains(['/', '\0']) {
        return Err(StoreError::Damaged {
            what: format!("the file {MARKER}"),
        });
    }
    let target = dir.join(&name);
    fs::create_dir_all(&target).map_err(io_error("making", &target))?;
    for part in MOVED {
        let (from, to) = (dir.join(part), target.join(part));
        match fs::rename(&from, &to) {
            Ok(()) => {},
            // Moved before the crash, or it was never there.
            Err(error) if error.kind() == ErrorKind::NotFound => {},
            Err(error) => return Err(io_error("moving", &from)(error)),
        }
    }
    sync_dir(&target)?;
    home.sync()?;
    remove_older(dir, &name)?;
    fs::remove_file(&marker).map_err(io_error("removing", &marker))?;
    home.sync()?;
    Ok(Some(target))
}

/// Removes retired generations but this one.
fn remove_older(dir: &Path, kept: &str) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(io_error("listing", dir))? {
        let entry = entry.map_err(io_error("listing", dir))?;
        let name = entry.file_name();
        let older = name
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX) && name != kept);
        if older {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(io_error("removing", &path))?;
        }
    }
    Ok(())
}
