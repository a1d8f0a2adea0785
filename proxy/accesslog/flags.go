package accesslog

// Flags are Envoy's response flags: why a request ended as it did.
type Flags uint32

// Response flags, printed with Envoy's short names.
const (
	FailedLocalHealthCheck          Flags = 1 << iota // LH
	NoHealthyUpstream                                 // UH
	UpstreamRequestTimeout                            // UT
	LocalReset                                        // LR
	UpstreamRemoteReset                               // UR
	UpstreamConnectionFailure                         // UF
	UpstreamConnectionTermination                     // UC
	UpstreamOverflow                                  // UO
	NoRouteFound                                      // NR
	DelayInjected                                     // DI
	FaultInjected                                     // FI
	RateLimited                                       // RL
	UnauthorizedExternalService                       // UAEX
	RateLimitServiceError                             // RLSE
	DownstreamConnectionTermination                   // DC
	UpstreamRetryLimitExceeded                        // URX
	StreamIdleTimeout                                 // SI
	InvalidEnvoyRequestHeaders                        // IH
	DownstreamProtocolError                           // DPE
	UpstreamMaxStreamDuration                         // UMSDR
	ResponseFromCache                                 // RFCF
	NoFilterConfig                                    // NFCF
	DurationTimeout                                   // DT
	UpstreamProtocolError                             // UPE
	NoClusterFound                                    // NC
	OverloadManager                                   // OM
	DNSFailure                                        // DF
	DropOverload                                      // DO
	DownstreamRemoteReset                             // DR
)

var flagNames = [...]string{"LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL",
	"UAEX", "RLSE", "DC", "URX", "SI", "IH", "DPE", "UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM",
	"DF", "DO", "DR"}

var flagLongNames = [...]string{"FailedLocalHealthCheck", "NoHealthyUpstream", "UpstreamRequestTimeout",
	"LocalReset", "UpstreamRemoteReset", "UpstreamConnectionFailure", "UpstreamConnectionTermination",
	"UpstreamOverflow", "NoRouteFound", "DelayInjected", "FaultInjected", "RateLimited",
	"UnauthorizedExternalService", "RateLimitServiceError", "DownstreamConnectionTermination",
	"UpstreamRetryLimitExceeded", "StreamIdleTimeout", "InvalidEnvoyRequestHeaders",
	"DownstreamProtocolError", "UpstreamMaxStreamDurationReached", "ResponseFromCacheFilter",
	"NoFilterConfigFound", "DurationTimeout", "UpstreamProtocolError", "NoClusterFound",
	"OverloadManagerTerminated", "DnsResolutionFailed", "DropOverload", "DownstreamRemoteReset"}

// ParseFlag returns the flag with that short name ("UH"), or 0.
func ParseFlag(name string) Flags {
	for i, n := range flagNames {
		if n == name {
			return 1 << i
		}
	}
	return 0
}

// Append appends the short names of the flags joined by commas, or "-" for none.
func (f Flags) Append(dst []byte) []byte { return f.append(dst, flagNames[:]) }

// AppendLong appends the long names likewise.
func (f Flags) AppendLong(dst []byte) []byte { return f.append(dst, flagLongNames[:]) }

func (f Flags) append(dst []byte, names []string) []byte {
	if f == 0 {
		return append(dst, '-')
	}
	first := true
	for i, n := range names {
		if f&(1<<i) != 0 {
			if !first {
				dst = append(dst, ',')
			}
			first = false
			dst = append(dst, n...)
		}
	}
	return dst
}

// String returns the short names.
func (f Flags) String() string { return string(f.Append(nil)) }
