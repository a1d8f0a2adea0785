package stats

// The names in the tags are Envoy's. A tag's option ",codes" makes NAME_2xx and NAME_200 of Codes.

// Cluster is a cluster's statistics, cluster.NAME.….
type Cluster struct {
	CxTotal          Counter   `stat:"upstream_cx_total"`
	CxActive         Gauge     `stat:"upstream_cx_active"`
	CxHTTP1          Counter   `stat:"upstream_cx_http1_total"`
	CxHTTP2          Counter   `stat:"upstream_cx_http2_total"`
	CxConnectFail    Counter   `stat:"upstream_cx_connect_fail"`
	CxConnectTimeout Counter   `stat:"upstream_cx_connect_timeout"`
	CxIdleTimeout    Counter   `stat:"upstream_cx_idle_timeout"`
	CxDestroy        Counter   `stat:"upstream_cx_destroy"`
	CxDestroyLocal   Counter   `stat:"upstream_cx_destroy_local"`
	CxDestroyRemote  Counter   `stat:"upstream_cx_destroy_remote"`
	CxDestroyWithRq  Counter   `stat:"upstream_cx_destroy_with_active_rq"`
	CxOverflow       Counter   `stat:"upstream_cx_overflow"`
	CxNoneHealthy    Counter   `stat:"upstream_cx_none_healthy"`
	CxMaxRequests    Counter   `stat:"upstream_cx_max_requests"`
	CxProtocolError  Counter   `stat:"upstream_cx_protocol_error"`
	CxRxBytes        Counter   `stat:"upstream_cx_rx_bytes_total"`
	CxTxBytes        Counter   `stat:"upstream_cx_tx_bytes_total"`
	CxConnectMS      Histogram `stat:"upstream_cx_connect_ms"`
	CxLengthMS       Histogram `stat:"upstream_cx_length_ms"`

	RqTotal            Counter   `stat:"upstream_rq_total"`
	RqActive           Gauge     `stat:"upstream_rq_active"`
	RqPending          Counter   `stat:"upstream_rq_pending_total"`
	RqPendingActive    Gauge     `stat:"upstream_rq_pending_active"`
	RqPendingOverflow  Counter   `stat:"upstream_rq_pending_overflow"`
	RqPendingFailEject Counter   `stat:"upstream_rq_pending_failure_eject"`
	RqCancelled        Counter   `stat:"upstream_rq_cancelled"`
	RqMaintenance      Counter   `stat:"upstream_rq_maintenance_mode"`
	RqTimeout          Counter   `stat:"upstream_rq_timeout"`
	RqPerTryTimeout    Counter   `stat:"upstream_rq_per_try_timeout"`
	RqRxReset          Counter   `stat:"upstream_rq_rx_reset"`
	RqTxReset          Counter   `stat:"upstream_rq_tx_reset"`
	RqRetry            Counter   `stat:"upstream_rq_retry"`
	RqRetrySuccess     Counter   `stat:"upstream_rq_retry_success"`
	RqRetryOverflow    Counter   `stat:"upstream_rq_retry_overflow"`
	RqRetryLimit       Counter   `stat:"upstream_rq_retry_limit_exceeded"`
	RqCompleted        Counter   `stat:"upstream_rq_completed"`
	RepeatAbandoned    Counter   `stat:"retry_or_shadow_abandoned"`
	RqCodes            Codes     `stat:"upstream_rq,codes"`
	RqTime             Histogram `stat:"upstream_rq_time"`

	Members          Gauge   `stat:"membership_total"`
	MembersHealthy   Gauge   `stat:"membership_healthy"`
	MembersDegraded  Gauge   `stat:"membership_degraded"`
	MembersExcluded  Gauge   `stat:"membership_excluded"`
	MembershipChange Counter `stat:"membership_change"`
	UpdateSuccess    Counter `stat:"update_success"`
	UpdateFailure    Counter `stat:"update_failure"`
	UpdateEmpty      Counter `stat:"update_empty"`
	HealthyPanic     Counter `stat:"lb_healthy_panic"`

	EjectionsActive  Gauge   `stat:"outlier_detection.ejections_active"`
	EjectionsTotal   Counter `stat:"outlier_detection.ejections_enforced_total"`
	EjectionsOver    Counter `stat:"outlier_detection.ejections_overflow"`
	HealthAttempt    Counter `stat:"health_check.attempt"`
	HealthSuccess    Counter `stat:"health_check.success"`
	HealthFailure    Counter `stat:"health_check.failure"`
	TLSHandshake     Counter `stat:"ssl.handshake"`
	TLSError         Counter `stat:"ssl.connection_error"`
	TLSVerifyError   Counter `stat:"ssl.fail_verify_error"`
	TLSVerifySAN     Counter `stat:"ssl.fail_verify_san"`
	TLSSessionReused Counter `stat:"ssl.session_reused"`

	BreakerCxOpen      Gauge `stat:"circuit_breakers.default.cx_open"`
	BreakerPendingOpen Gauge `stat:"circuit_breakers.default.rq_pending_open"`
	BreakerRqOpen      Gauge `stat:"circuit_breakers.default.rq_open"`
	BreakerRetryOpen   Gauge `stat:"circuit_breakers.default.rq_retry_open"`
}

// HTTP is an HTTP connection manager's statistics, http.PREFIX.….
type HTTP struct {
	CxTotal         Counter   `stat:"downstream_cx_total"`
	CxActive        Gauge     `stat:"downstream_cx_active"`
	CxHTTP1         Counter   `stat:"downstream_cx_http1_total"`
	CxHTTP1Active   Gauge     `stat:"downstream_cx_http1_active"`
	CxHTTP2         Counter   `stat:"downstream_cx_http2_total"`
	CxHTTP2Active   Gauge     `stat:"downstream_cx_http2_active"`
	CxTLS           Counter   `stat:"downstream_cx_ssl_total"`
	CxDestroy       Counter   `stat:"downstream_cx_destroy"`
	CxDestroyLocal  Counter   `stat:"downstream_cx_destroy_local"`
	CxDestroyRemote Counter   `stat:"downstream_cx_destroy_remote"`
	CxIdleTimeout   Counter   `stat:"downstream_cx_idle_timeout"`
	CxProtocolError Counter   `stat:"downstream_cx_protocol_error"`
	CxDrainClose    Counter   `stat:"downstream_cx_drain_close"`
	CxRxBytes       Counter   `stat:"downstream_cx_rx_bytes_total"`
	CxTxBytes       Counter   `stat:"downstream_cx_tx_bytes_total"`
	CxUpgrades      Counter   `stat:"downstream_cx_upgrades_total"`
	CxUpgradeActive Gauge     `stat:"downstream_cx_upgrades_active"`
	CxLengthMS      Histogram `stat:"downstream_cx_length_ms"`

	RqTotal         Counter   `stat:"downstream_rq_total"`
	RqActive        Gauge     `stat:"downstream_rq_active"`
	RqHTTP1         Counter   `stat:"downstream_rq_http1_total"`
	RqHTTP2         Counter   `stat:"downstream_rq_http2_total"`
	RqCompleted     Counter   `stat:"downstream_rq_completed"`
	RqRxReset       Counter   `stat:"downstream_rq_rx_reset"`
	RqTxReset       Counter   `stat:"downstream_rq_tx_reset"`
	RqTimeout       Counter   `stat:"downstream_rq_timeout"`
	RqHeaderTimeout Counter   `stat:"downstream_rq_header_timeout"`
	RqIdleTimeout   Counter   `stat:"downstream_rq_idle_timeout"`
	RqOverload      Counter   `stat:"downstream_rq_overload_close"`
	RqTooLarge      Counter   `stat:"downstream_rq_too_large"`
	RqNonRelative   Counter   `stat:"downstream_rq_non_relative_path"`
	RqCodes         Codes     `stat:"downstream_rq,codes"`
	RqTime          Histogram `stat:"downstream_rq_time"`
	NoRoute         Counter   `stat:"no_route"`
	NoCluster       Counter   `stat:"no_cluster"`
	DirectResponse  Counter   `stat:"rq_direct_response"`
	Redirect        Counter   `stat:"rq_redirect"`
	FaultAborts     Counter   `stat:"fault.aborts_injected"`
	FaultDelays     Counter   `stat:"fault.delays_injected"`
}

// TCP is a TCP proxy's statistics, tcp.PREFIX.….
type TCP struct {
	CxTotal       Counter `stat:"downstream_cx_total"`
	CxNoRoute     Counter `stat:"downstream_cx_no_route"`
	CxRxBytes     Counter `stat:"downstream_cx_rx_bytes_total"`
	CxTxBytes     Counter `stat:"downstream_cx_tx_bytes_total"`
	IdleTimeout   Counter `stat:"idle_timeout"`
	MaxDuration   Counter `stat:"max_downstream_connection_duration"`
	UpstreamTotal Counter `stat:"upstream_flush_total"`
}

// Listener is a listener's statistics, listener.ADDRESS.….
type Listener struct {
	CxTotal          Counter   `stat:"downstream_cx_total"`
	CxActive         Gauge     `stat:"downstream_cx_active"`
	CxDestroy        Counter   `stat:"downstream_cx_destroy"`
	CxOverflow       Counter   `stat:"downstream_cx_overflow"`
	CxOverload       Counter   `stat:"downstream_cx_overload_reject"`
	CxGlobalOverflow Counter   `stat:"downstream_global_cx_overflow"`
	CxLengthMS       Histogram `stat:"downstream_cx_length_ms"`
	PreCxTimeout     Counter   `stat:"downstream_pre_cx_timeout"`
	NoFilterChain    Counter   `stat:"no_filter_chain_match"`
	TLSHandshake     Counter   `stat:"ssl.handshake"`
	TLSError         Counter   `stat:"ssl.connection_error"`
	TLSNoCertificate Counter   `stat:"ssl.no_certificate"`
	TLSVerifyNoCert  Counter   `stat:"ssl.fail_verify_no_cert"`
	TLSVerifyError   Counter   `stat:"ssl.fail_verify_error"`
	TLSVerifySAN     Counter   `stat:"ssl.fail_verify_san"`
	RqCodes          Codes     `stat:"http.downstream_rq,codes"`
}

// Process is what there is once, without a scope.
type Process struct {
	ListenersActive   Gauge   `stat:"listener_manager.total_listeners_active"`
	ListenersWarming  Gauge   `stat:"listener_manager.total_listeners_warming"`
	ListenersDraining Gauge   `stat:"listener_manager.total_listeners_draining"`
	ListenersAdded    Counter `stat:"listener_manager.listener_added"`
	ListenersModified Counter `stat:"listener_manager.listener_modified"`
	ListenersRemoved  Counter `stat:"listener_manager.listener_removed"`
	ListenerFailure   Counter `stat:"listener_manager.listener_create_failure"`
	LDSUpdates        Counter `stat:"listener_manager.lds.update_success"`
	LDSRejected       Counter `stat:"listener_manager.lds.update_rejected"`
	WorkersStarted    Gauge   `stat:"listener_manager.workers_started"`
	ClustersActive    Gauge   `stat:"cluster_manager.active_clusters"`
	ClustersWarming   Gauge   `stat:"cluster_manager.warming_clusters"`
	ClustersAdded     Counter `stat:"cluster_manager.cluster_added"`
	ClustersModified  Counter `stat:"cluster_manager.cluster_modified"`
	ClustersRemoved   Counter `stat:"cluster_manager.cluster_removed"`
	CDSUpdates        Counter `stat:"cluster_manager.cds.update_success"`
	CDSRejected       Counter `stat:"cluster_manager.cds.update_rejected"`
	ControlConnected  Gauge   `stat:"control_plane.connected_state"`

	State       Gauge   `stat:"server.state"` // 0 live, 1 draining, 2 pre-initialising, 3 initialising
	Live        Gauge   `stat:"server.live"`
	Uptime      Gauge   `stat:"server.uptime"` // seconds
	Concurrency Gauge   `stat:"server.concurrency"`
	Memory      Gauge   `stat:"server.memory_allocated"`
	Heap        Gauge   `stat:"server.memory_heap_size"`
	Physical    Gauge   `stat:"server.memory_physical_size"`
	Connections Gauge   `stat:"server.total_connections"`
	Held        Gauge   `stat:"server.memory_held"` // for connections and requests
	Panics      Counter `stat:"server.panics"`      // each has ended a connection
	// OverloadActive is how many loops answer new requests 503.
	OverloadActive Gauge `stat:"overload.envoy.overload_actions.stop_accepting_requests.active"`
	CertDays       Gauge `stat:"server.days_until_first_cert_expiring"`
	LogDropped     Gauge `stat:"access_log.buffers_dropped"`
}
