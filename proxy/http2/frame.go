package http2

import (
	"encoding/binary"
	"fmt"
)

// Preface is what a client sends first (RFC 9113, 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	frameHeader  = 9
	maxFrame     = 16384     // SETTINGS_MAX_FRAME_SIZE of both sides: the least there is
	firstWindow  = 65535     // flow-control windows before any setting
	maxWindow    = 1<<31 - 1 // RFC 9113, 6.9.1
	maxStreamID  = 1<<31 - 1
	lastOfAllIDs = maxStreamID
)

type frameType uint8

// Frame types (RFC 9113, 6).
const (
	frameData frameType = iota
	frameHeaders
	framePriority
	frameReset
	frameSettings
	framePush
	framePing
	frameGoAway
	frameWindow
	frameContinuation
)

// Flags of frames.
const (
	flagEnd        = 0x1 // of DATA and HEADERS
	flagAck        = 0x1 // of SETTINGS and PING
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings (RFC 9113, 6.5.2; RFC 8441).
const (
	settingHeaderTable   = 1
	settingPush          = 2
	settingMaxStreams    = 3
	settingWindow        = 4
	settingMaxFrame      = 5
	settingMaxHeaderList = 6
	settingConnect       = 8
)

// Code is an error code (RFC 9113, 7).
type Code uint32

// Error codes.
const (
	NoError Code = iota
	ProtocolError
	InternalError
	FlowControlError
	SettingsTimeout
	StreamClosed
	FrameSizeError
	RefusedStream
	Cancel
	CompressionError
	ConnectError
	EnhanceYourCalm
	InadequateSecurity
	HTTP11Required
)

var codeNames = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
	"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR",
	"ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}

// String returns the RFC's name.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code %d", uint32(c))
}

// ConnError ends a connection.
type ConnError struct {
	Code   Code
	Reason string
}

// Error names the code and the reason.
func (e *ConnError) Error() string { return "http2: " + e.Code.String() + ": " + e.Reason }

// frame is a frame's header.
type frame struct {
	length int
	kind   frameType
	flags  uint8
	stream uint32
}

func parseFrame(b []byte) frame {
	return frame{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   frameType(b[3]), flags: b[4],
		stream: binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

func appendFrame(dst []byte, length int, kind frameType, flags uint8, stream uint32) []byte {
	return append(dst, byte(length>>16), byte(length>>8), byte(length), byte(kind), flags,
		byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
}

func appendUint32(dst []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(dst, v) }

func appendSetting(dst []byte, id uint16, v uint32) []byte {
	return appendUint32(binary.BigEndian.AppendUint16(dst, id), v)
}
