//! A journald for one lab: takes what is logged by its native protocol, so that a test can read it.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lab::Lab;

/// Takes entries until it is dropped; read by a thread of its own, since a full socket would hold the sender up.
pub struct Journal {
    taken: Arc<Mutex<Vec<u8>>>,
}

impl Journal {
    /// Listens where programs in the lab's hub look for journald.
    pub fn listen(lab: &Lab) -> Self {
        // The hub's own /run from now on, so that the host's stays untouched.
        let made = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal";
        assert!(lab.hub_command("sh").args(["-c", made]).status().unwrap().success());
        let hub = std::fs::read_to_string(lab.dir().join("hub.pid")).unwrap();
        let path = format!("/proc/{}/root/run/systemd/journal/socket", hub.trim());
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::downgrade(&taken);
        std::thread::spawn(move || {
            let mut entry = vec![0; 256 * 1024];
            while let Some(taken) = into.upgrade() {
                if let Ok(n) = socket.recv(&mut entry) {
                    taken.lock().unwrap().extend_from_slice(&entry[..n]);
                }
            }
        });
        Self { taken }
    }

    /// Everything that was logged until now.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.taken.lock().unwrap()).into_owned()
    }

    /// Waits until a field had this value, shorter than 128 bytes: systemd's JOURNAL_NATIVE_PROTOCOL, binary-safe form.
    pub fn wait_for_field(&self, name: &str, value: &str, bound: Duration) {
        let length = char::from(u8::try_from(value.len()).unwrap());
        self.wait_for(&format!("{name}\n{length}\0\0\0\0\0\0\0{value}\n"), bound);
    }

    /// Waits until `text` was logged.
    pub fn wait_for(&self, text: &str, bound: Duration) {
        let end = Instant::now() + bound;
        while !self.text().contains(text) {
            assert!(Instant::now() < end, "not logged within {bound:?}: {text}; but {}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
