package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tandem-storage/tandem/cmd/internal/config"
)

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	lg, level, err := New(config.Log{Level: "info", Format: config.LogJSON}, zapcore.AddSync(&b))
	if err != nil {
		t.Fatal(err)
	}
	lg.Debug("not shown")
	lg.Info("peer disconnected", zap.Duration("took", 1500*time.Millisecond))
	var line map[string]any
	if err := json.Unmarshal(b.Bytes(), &line); err != nil {
		t.Fatalf("%v: %s", err, b.String())
	}
	if line["msg"] != "peer disconnected" || line["took"] != "1.5s" || line["level"] != "info" {
		t.Errorf("got %v", line)
	}
	if _, err := time.Parse(time.RFC3339Nano, line["ts"].(string)); err != nil {
		t.Error(err)
	}

	// The level can be changed while running.
	b.Reset()
	level.SetLevel(zap.DebugLevel)
	lg.With(zap.String("volume-id", "v")).Debug("shown")
	if !strings.Contains(b.String(), `"msg":"shown","volume-id":"v"`) {
		t.Errorf("got %s", b.String())
	}
	b.Reset()
	level.SetLevel(zap.ErrorLevel)
	lg.Warn("not shown")
	if b.Len() > 0 {
		t.Errorf("got %s", b.String())
	}
}

func TestConsole(t *testing.T) {
	var b bytes.Buffer
	lg, _, err := New(config.Log{Level: "warn", Format: config.LogConsole}, zapcore.AddSync(&b))
	if err != nil {
		t.Fatal(err)
	}
	lg.Warn("slow local write", zap.Int64("off", 4096))
	if !strings.Contains(b.String(), "WARN") || !strings.Contains(b.String(), `{"off": 4096}`) {
		t.Errorf("got %s", b.String())
	}
}

func TestBadConfig(t *testing.T) {
	for _, c := range []config.Log{{Level: "loud", Format: config.LogJSON}, {Level: "info", Format: "xml"}} {
		if _, _, err := New(c, zapcore.AddSync(&bytes.Buffer{})); !errors.Is(err, config.ErrInvalid) {
			t.Errorf("%+v: got %v", c, err)
		}
	}
}
