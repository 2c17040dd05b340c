//! A file system in memory that knows what is durable, fails where it is told to, and dies.

use std::{
    collections::BTreeMap,
    io::{self, Cursor, Read, Write},
    path::{Component, Path},
    sync::{Arc, Mutex, MutexGuard},
};

use brightrun_kernels::dropout::splitmix;

use super::super::storage::{Output, Storage};

/// What happens to operations from a certain one on; they are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing.
    Work,
    /// This one fails; those after it do not.
    FailOnce(usize),
    /// This one and all after it that write or make something fail.
    FullFrom(usize),
    /// This one and all after it do nothing. A write that is the first of them is done by half.
    Kill(usize),
}

/// What a loss of power leaves of files that were not synced.
#[derive(Debug, Clone, Copy)]
pub(super) enum Data {
    Kept,
    Empty,
    Half,
    Zeros,
}

/// What it leaves of names that were made, changed or removed in folders that were not synced.
#[derive(Debug, Clone, Copy)]
pub(super) enum Names {
    All,
    None,
    /// Any of the changes, independently of each other.
    Some(u64),
}

/// Shared: whoever holds a clone sees the same files.
#[derive(Debug, Clone)]
pub(super) struct Simulated(Arc<Mutex<State>>);

#[derive(Debug, Clone)]
struct State {
    /// The first one is the run's folder.
    nodes: Vec<Node>,
    plan: Plan,
    operations: usize,
}

#[derive(Debug, Clone)]
enum Node {
    File { bytes: Vec<u8>, durable: Option<Vec<u8>> },
    Folder { names: BTreeMap<String, usize>, durable: BTreeMap<String, usize>, changes: Vec<Change> },
}

#[derive(Debug, Clone)]
enum Change {
    Add(String, usize),
    Remove(String),
    Rename(String, String, usize),
}

struct SimulatedFile {
    storage: Simulated,
    node: usize,
}

// === impl Node ===

impl Node {
    fn folder() -> Self {
        Self::Folder { names: BTreeMap::new(), durable: BTreeMap::new(), changes: Vec::new() }
    }
}

// === impl Change ===

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Add(name, node) => drop(names.insert(name.clone(), *node)),
            Self::Remove(name) => drop(names.remove(name)),
            Self::Rename(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

// === impl State ===

impl State {
    /// Counts an operation and says whether it is done.
    fn operation(&mut self, writes: bool) -> io::Result<()> {
        let index = self.operations;
        self.operations += 1;
        let full = || Err(io::Error::from(io::ErrorKind::StorageFull));
        match self.plan {
            Plan::FailOnce(at) if index == at => full(),
            Plan::FullFrom(at) if index >= at && writes => full(),
            Plan::Kill(at) if index >= at => Err(io::Error::other("killed")),
            _ => Ok(()),
        }
    }

    /// The node of a path below the run's folder.
    fn find(&self, path: &Path) -> io::Result<usize> {
        let parts = path.components().filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        });
        parts.skip(1).try_fold(0, |node, name| match &self.nodes[node] {
            Node::Folder { names, .. } => names.get(name).copied().ok_or(io::ErrorKind::NotFound.into()),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        })
    }

    fn names(&mut self, folder: usize) -> io::Result<(&mut BTreeMap<String, usize>, &mut Vec<Change>)> {
        match &mut self.nodes[folder] {
            Node::Folder { names, changes, .. } => Ok((names, changes)),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn change(&mut self, folder: usize, change: Change) -> io::Result<()> {
        let (names, changes) = self.names(folder)?;
        change.apply(names);
        changes.push(change);
        Ok(())
    }

    fn make(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let (parent, name) = (self.find(path.parent().unwrap())?, file_name(path));
        if self.names(parent)?.0.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.nodes.push(node);
        let index = self.nodes.len() - 1;
        self.change(parent, Change::Add(name, index))?;
        Ok(index)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

// === impl Simulated ===

impl Simulated {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { nodes: vec![Node::folder()], plan: Plan::Work, operations: 0 })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The same files, and from here on no longer shared.
    pub(super) fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.state().clone())))
    }

    /// Starts counting again.
    pub(super) fn follow(&self, plan: Plan) {
        let mut state = self.state();
        (state.plan, state.operations) = (plan, 0);
    }

    pub(super) fn operations(&self) -> usize {
        self.state().operations
    }

    pub(super) fn read(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        match &state.nodes[state.find(path).unwrap()] {
            Node::File { bytes, .. } => bytes.clone(),
            Node::Folder { .. } => panic!("{} is a folder", path.display()),
        }
    }

    pub(super) fn edit(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let node = state.find(path).unwrap();
        if let Node::File { bytes, .. } = &mut state.nodes[node] {
            change(bytes);
        }
    }

    pub(super) fn remove_file(&self, path: &Path) {
        let mut state = self.state();
        let parent = state.find(path.parent().unwrap()).unwrap();
        state.change(parent, Change::Remove(file_name(path))).unwrap();
    }

    /// What is there after a loss of power, or (everything kept) after a kill.
    pub(super) fn crash(&self, data: Data, names: Names) -> Self {
        let mut state = self.state().clone();
        (state.plan, state.operations) = (Plan::Work, 0);
        let mut random = match names {
            Names::Some(seed) => splitmix(seed),
            _ => 0,
        };
        for node in &mut state.nodes {
            match node {
                Node::File { bytes, durable } => {
                    if durable.as_ref() != Some(bytes) {
                        match data {
                            Data::Kept => {}
                            Data::Empty => bytes.clear(),
                            Data::Half => bytes.truncate(bytes.len() / 2),
                            Data::Zeros => bytes.fill(0),
                        }
                    }
                    *durable = Some(bytes.clone());
                }
                Node::Folder { names: now, durable, changes } => {
                    for change in changes.drain(..) {
                        random = splitmix(random);
                        let happened = match names {
                            Names::All => true,
                            Names::None => false,
                            Names::Some(_) => random.is_multiple_of(2),
                        };
                        if happened {
                            change.apply(durable);
                        }
                    }
                    *now = durable.clone();
                }
            }
        }
        Self(Arc::new(Mutex::new(state)))
    }
}

impl Storage for Simulated {
    fn prepare(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operation(true)?;
        state.make(folder, Node::folder()).map(drop)
    }

    fn create_file(&self, file: &Path) -> io::Result<Box<dyn Output>> {
        let mut state = self.state();
        state.operation(true)?;
        let node = state.make(file, Node::File { bytes: Vec::new(), durable: None })?;
        Ok(Box::new(SimulatedFile { storage: self.clone(), node }))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operation(false)?;
        let node = state.find(folder)?;
        if let Node::Folder { names, durable, changes } = &mut state.nodes[node] {
            *durable = names.clone();
            changes.clear();
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        assert_eq!(from.parent(), to.parent(), "only names change");
        let mut state = self.state();
        state.operation(false)?;
        let (node, parent) = (state.find(from)?, state.find(from.parent().unwrap())?);
        if state.find(to).is_ok() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.change(parent, Change::Rename(file_name(from), file_name(to), node))
    }

    /// File by file, each an operation.
    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.state();
        let (node, parent) = (state.find(folder)?, state.find(folder.parent().unwrap())?);
        let files: Vec<String> = state.names(node)?.0.keys().cloned().collect();
        for file in files {
            state.operation(false)?;
            state.change(node, Change::Remove(file))?;
        }
        state.operation(false)?;
        state.change(parent, Change::Remove(file_name(folder)))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state();
        let node = state.find(folder)?;
        Ok(state.names(node)?.0.keys().cloned().collect())
    }

    fn open(&self, file: &Path) -> io::Result<Box<dyn Read>> {
        let state = self.state();
        match &state.nodes[state.find(file)?] {
            Node::File { bytes, .. } => Ok(Box::new(Cursor::new(bytes.clone()))),
            Node::Folder { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }
}

// === impl SimulatedFile ===

impl Write for SimulatedFile {
    /// Takes what it is given in two pieces, so that short writes happen all the time.
    fn write(&mut self, given: &[u8]) -> io::Result<usize> {
        let mut state = self.storage.state();
        let index = state.operations;
        let done = state.operation(true);
        let mut taken = if given.len() > 1 { given.len() / 2 + 1 } else { given.len() };
        if done.is_err() {
            if state.plan != Plan::Kill(index) {
                return done.map(|()| 0);
            }
            taken = given.len() / 2;
        }
        if let Node::File { bytes, .. } = &mut state.nodes[self.node] {
            bytes.extend_from_slice(&given[..taken]);
        }
        done.map(|()| taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for SimulatedFile {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.storage.state();
        state.operation(false)?;
        if let Node::File { bytes, durable } = &mut state.nodes[self.node] {
            *durable = Some(bytes.clone());
        }
        Ok(())
    }
}
