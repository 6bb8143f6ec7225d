package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"hash/crc32"
	"strconv"

	pb "catraca.invalid/bench/peers/gen/catraca/v1"
)

const (
	tokenPrefix = "ctr_"
	secretAt    = len(tokenPrefix) + 22
	checksumAt  = secretAt + 43
	tokenLength = checksumAt + 6

	digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

	touchIntervalMaxMs    = 60_000
	touchesPerIdleTimeout = 20
	stepMinMs             = 1_000

	noReason = pb.InvalidReason_INVALID_REASON_UNSPECIFIED
	notFound = pb.InvalidReason_INVALID_REASON_NOT_FOUND
	reused   = pb.InvalidReason_INVALID_REASON_TOKEN_REUSED
)

// credential is what a token proves: knowledge of the secret with this digest.
type credential struct {
	sessionID string
	digest    []byte
}

// readToken reads a minted token, and says whether it is one.
func readToken(token string) (credential, bool) {
	if len(token) != tokenLength || token[:len(tokenPrefix)] != tokenPrefix {
		return credential{}, false
	}
	body := token[len(tokenPrefix):checksumAt]
	for _, char := range []byte(body) {
		if !(char >= '0' && char <= '9' || char >= 'A' && char <= 'Z' || char >= 'a' && char <= 'z') {
			return credential{}, false
		}
	}
	if token[checksumAt:] != checksum(body) {
		return credential{}, false
	}
	hash := sha256.Sum256([]byte(token[secretAt:checksumAt]))
	digest := make([]byte, base64.RawURLEncoding.EncodedLen(len(hash)))
	base64.RawURLEncoding.Encode(digest, hash[:])
	return credential{token[len(tokenPrefix):secretAt], digest}, true
}

func checksum(body string) string {
	var text [6]byte
	number := crc32.ChecksumIEEE([]byte(body))
	for at := len(text) - 1; at >= 0; at-- {
		text[at] = digits[number%62]
		number /= 62
	}
	return string(text[:])
}

// session is a record, and the rules that catraca has in domain/session.py.
type session struct {
	ID               string            `json:"id"`
	UserID           string            `json:"user_id"`
	CreateMs         int64             `json:"login_at"`
	AbsoluteExpireMs int64             `json:"absolute_expire_at"`
	IdleTimeoutMs    int64             `json:"idle_ms"`
	Digest           string            `json:"digest"`
	Version          int64             `json:"version"`
	Attributes       map[string]string `json:"attributes"`
	Rotated          []struct {
		Digest     string `json:"digest"`
		GraceEndMs int64  `json:"grace_until"`
	} `json:"retired"`
}

func decode(record []byte) (*session, error) {
	found := &session{}
	return found, json.Unmarshal(record, found)
}

// judge says whether a digest opens the session: as its current token, as one in its grace (true), or why not.
func (s *session) judge(digest []byte, nowMs int64) (bool, pb.InvalidReason) {
	if nowMs >= s.AbsoluteExpireMs {
		return false, notFound
	}
	if subtle.ConstantTimeCompare(digest, []byte(s.Digest)) == 1 {
		return false, noReason
	}
	for _, each := range s.Rotated {
		if subtle.ConstantTimeCompare(digest, []byte(each.Digest)) == 1 {
			if nowMs < each.GraceEndMs {
				return true, noReason
			}
			return false, reused
		}
	}
	return false, notFound
}

func (s *session) etag() string {
	return strconv.FormatInt(s.CreateMs, 16) + "-" + strconv.FormatInt(s.Version, 16)
}

func (s *session) touchIntervalMs() int64 {
	if s.IdleTimeoutMs == 0 {
		return touchIntervalMaxMs
	}
	return max(1, min(touchIntervalMaxMs, s.IdleTimeoutMs/touchesPerIdleTimeout))
}

func (s *session) stepMs() int64 {
	return max(stepMinMs, s.touchIntervalMs())
}

func (s *session) expiryIfActiveAt(activeMs int64) int64 {
	stepsLeft := (s.AbsoluteExpireMs - activeMs + s.stepMs() - 1) / s.stepMs()
	underAbsoluteMs := max(s.AbsoluteExpireMs-stepsLeft, activeMs+1)
	if s.IdleTimeoutMs == 0 {
		return underAbsoluteMs
	}
	return min(activeMs+s.IdleTimeoutMs, underAbsoluteMs)
}

func (s *session) lastActiveMs(expiryMs int64) int64 {
	activeMs := s.AbsoluteExpireMs - (s.AbsoluteExpireMs-expiryMs)*s.stepMs()
	if s.IdleTimeoutMs > 0 {
		activeMs = max(activeMs, expiryMs-s.IdleTimeoutMs)
	}
	return max(activeMs, s.CreateMs)
}
