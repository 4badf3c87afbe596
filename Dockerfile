# The image of the daemon; with another command, of the sandbox service or a migration. Written for both of Docker's
# builders: nothing here needs BuildKit.

FROM node:24-bookworm-slim AS build
WORKDIR /app
COPY package.json package-lock.json ./
# No package needs its install script to build this one or to run in it.
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY . .
# Pruning leaves empty folders; and the files of a checkout may be readable for its owner alone (umask 077).
RUN npm run build \
 && npm prune --omit=dev --ignore-scripts --no-audit --no-fund \
 && find node_modules -type d -empty -delete \
 && chmod -R a+rX package.json dist sql \
 && mkdir /image && mv package.json node_modules dist sql /image/

FROM node:24-bookworm-slim
LABEL org.opencontainers.image.title="broadcastd" \
      org.opencontainers.image.description="A broadcast queue for bots over PostgreSQL" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="docker.io/library/node:24-bookworm-slim"
ENV NODE_ENV=production HOST=0.0.0.0
WORKDIR /app
EXPOSE 3000
# Begins an orderly end, which takes up to SHUTDOWN_GRACE_MS: give `docker stop` more than its ten seconds.
STOPSIGNAL SIGTERM
# Whether the process lives, not whether the database does: what acts on this check (Swarm, autoheal) replaces the
# container, and that mends no database. Whoever routes or waits asks /readyz, as compose.yaml does.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["node", "-e", "fetch('http://127.0.0.1:' + (process.env.PORT || 3000) + '/livez', { signal: AbortSignal.timeout(4000) }).then((r) => process.exit(r.ok ? 0 : 1))"]
ENTRYPOINT ["node", "/app/dist/main.js"]
CMD ["start"]
# The user "node"; as a number, because Kubernetes' runAsNonRoot cannot look up names. Nothing is written to the file
# system, so it may be read-only.
USER 1000:1000
# Last, so that a change of the sources repeats only this. The files stay root's.
COPY --from=build /image /app
