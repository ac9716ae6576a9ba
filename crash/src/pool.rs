//! Looks at many states at once, each in a process that may crash or hang.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::check::{Checker, Expected, Fault, Finding};
use crate::disk::Image;
use crate::record::write_image;
use crate::recording::Note;
use crate::setup::Setup;

/// A process that looks at states, one after the other.
#[derive(Debug)]
pub(crate) struct Looker {
    recorded: PathBuf,
    folder: PathBuf,
    loud: bool,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    questions: ChildStdin,
    answers: Receiver<String>,
}

/// A store that takes longer hangs.
const LONG: Duration = Duration::from_secs(75);

impl Looker {
    /// Looks at states of the recording in `recorded`, which it puts into `folder`. `loud`: what is printed there is
    /// shown.
    pub(crate) fn new(recorded: &Path, folder: &Path, loud: bool) -> Self {
        Self { recorded: recorded.into(), folder: folder.into(), loud, running: None }
    }

    /// What is wrong with a state, if anything is.
    ///
    /// # Errors
    /// If it could not be tried.
    pub(crate) fn look(&mut self, image: &Image, expected: Expected) -> Result<Option<Finding>> {
        write_image(image, &self.folder)?;
        let mut running = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        writeln!(running.questions, "{}", question(expected))?;
        let fault = match running.answers.recv_timeout(LONG) {
            Ok(answer) if answer == "well" => {
                self.running = Some(running);
                return Ok(None);
            }
            Ok(answer) => {
                let (name, words) = answer.split_once('\t').context("an answer of two parts")?;
                let fault = Fault::ALL.into_iter().find(|fault| fault.name() == name).context("an unknown fault")?;
                Finding { fault, words: words.into() }
            }
            Err(RecvTimeoutError::Timeout) => Finding { fault: Fault::Hang, words: "it never answers".into() },
            Err(RecvTimeoutError::Disconnected) => {
                let status = running.child.wait()?;
                return Ok(Some(Finding { fault: Fault::Crash, words: status.to_string() }));
            }
        };
        // Whatever the faulty state has left in that process ends with it.
        running.child.kill()?;
        running.child.wait()?;
        Ok(Some(fault))
    }

    fn start(&self) -> Result<Running> {
        let errors = if self.loud { Stdio::inherit() } else { Stdio::null() };
        let mut child = Command::new(std::env::current_exe()?)
            .arg("look")
            .args([&self.recorded, &self.folder])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()?;
        let questions = child.stdin.take().context("a pipe")?;
        let output = BufReader::new(child.stdout.take().context("a pipe")?);
        let (sender, answers) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Running { child, questions, answers })
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // Nobody is left to hear about a failure.
            drop(running.child.kill());
            drop(running.child.wait());
        }
    }
}

fn question(expected: Expected) -> String {
    let digest = |digest: [u8; 16]| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let Note { durable, digest: known, consistent } = expected.durable;
    let known = known.map_or("-".into(), digest);
    format!("{durable} {known} {} {}", u8::from(consistent), u8::from(expected.deep))
}

fn expected(question: &str) -> Result<Expected> {
    let words: Vec<&str> = question.split_whitespace().collect();
    let &[durable, known, consistent, deep] = &words[..] else { anyhow::bail!("{question:?} is no question") };
    let digest = match known {
        "-" => None,
        hex => Some(u128::from_str_radix(hex, 16)?.to_be_bytes()),
    };
    let durable = Note { durable: durable.parse()?, digest, consistent: consistent == "1" };
    Ok(Expected { durable, deep: deep == "1" })
}

/// The other end: answers questions about `folder`, line by line.
pub(crate) async fn answer(recorded: &Path, folder: &Path) -> Result<()> {
    let setup = Setup::from_line(&std::fs::read_to_string(recorded.join("setup"))?)?;
    let mut checker = Checker::new(setup, &recorded.join("master")).await?;
    for line in std::io::stdin().lines() {
        match checker.check(folder, expected(&line?)?).await {
            Ok(()) => println!("well"),
            Err(Finding { fault, words }) => println!("{}\t{}", fault.name(), words.replace(['\n', '\t'], " ")),
        }
    }
    Ok(())
}
