// Enqueueing from Go with pgx 5:  go mod init bot && go mod tidy && go run enqueue.go
package main

import (
	"context"
	"log"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
)

func main() {
	if err := enqueue(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func enqueue(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)

	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx) // does nothing once it is committed
	if _, err := tx.Exec(ctx, `SELECT broadcast_enqueue('send_broadcast', $1)`,
		map[string]any{"broadcast_id": 42}); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil { // from here on it will be sent
		return err
	}

	if _, err := conn.Exec(ctx,
		`SELECT broadcast_enqueue('send_segment_broadcast', $1, delay => $2, max_attempts => 5)`,
		map[string]any{"broadcast_id": 42, "segment_id": "premium"}, 10*time.Minute); err != nil {
		return err
	}
	batch := []map[string]any{
		{"job_type": "send_broadcast", "job_data": map[string]any{"broadcast_id": 43}},
		{"job_type": "send_broadcast", "job_data": map[string]any{"broadcast_id": 44}},
	}
	_, err = conn.Exec(ctx, `SELECT * FROM broadcast_enqueue_many($1)`, batch)
	return err
}
