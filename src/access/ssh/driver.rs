//! SSH as a [`Driver`]: nothing but the names under which a deployment asks for what [`Session`] does.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;

use super::{AccessError, Copied, EngineImage, Firewall, Ground, Opened, Session, Target, Undone};
use crate::access::driver::{Driver, NodeSession, Tunnel};
use crate::access::undo::{Armed, EngineFiles, EngineProcess, EntryId, FirewallRule, Undo};
use crate::wire::id::DeploymentId;
use crate::wire::message::{StartConfig, Started};

/// Linux nodes over SSH.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ssh;

#[async_trait]
impl Driver for Ssh {
    async fn connect(&self, target: &Target) -> Result<Box<dyn NodeSession>, AccessError> {
        Ok(Box::new(Session::connect(target).await?))
    }
}

#[async_trait]
impl NodeSession for Session {
    fn fingerprint(&self) -> &str {
        self.host_key()
    }

    fn peer_address(&self) -> SocketAddr {
        Self::peer_address(self)
    }

    fn round_trip(&self) -> Duration {
        Self::round_trip(self)
    }

    async fn look(&mut self) -> Result<Ground, AccessError> {
        Self::look(self).await
    }

    async fn copy_engine(
        &mut self,
        armed: Armed<EngineFiles>,
        deployment: &DeploymentId,
        ground: &Ground,
        image: &'static EngineImage,
    ) -> Result<Copied, AccessError> {
        Self::copy_engine(self, armed, deployment, ground, image).await
    }

    async fn start_engine(
        &mut self,
        armed: Armed<EngineProcess>,
        config: &StartConfig,
    ) -> Result<Started, AccessError> {
        Self::start_engine(self, armed, config).await
    }

    async fn firewall(&mut self, from: IpAddr, deployment: &DeploymentId) -> Result<Firewall, AccessError> {
        Self::firewall(self, from, deployment).await
    }

    async fn open_port(
        &mut self,
        armed: Armed<FirewallRule>,
        directory: &str,
    ) -> Result<Opened, AccessError> {
        Self::open_port(self, armed, directory).await
    }

    async fn undo(
        &mut self,
        deployment: &DeploymentId,
        undos: &[(EntryId, Undo)],
    ) -> Result<Vec<(EntryId, Result<Undone, String>)>, AccessError> {
        Self::undo(self, deployment, undos).await
    }

    async fn attach(&mut self, directory: &str) -> Result<Tunnel, AccessError> {
        Self::attach(self, directory).await
    }

    async fn rest(&mut self) {
        Self::rest(self);
    }

    async fn boot_id(&mut self) -> Result<String, AccessError> {
        Self::boot_id(self).await
    }

    async fn tell_users(&mut self, message: &str) -> Result<(), AccessError> {
        Self::tell_users(self, message).await
    }

    async fn restart(&mut self) -> Result<(), AccessError> {
        Self::restart(self).await
    }

    async fn close(self: Box<Self>) {
        Self::close(*self).await;
    }
}
