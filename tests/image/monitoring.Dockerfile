# Images that replace Prometheus and Grafana if the real images can't be pulled. The replacements have the users,
# folders, ports and pages that docker-compose.yml relies on. The target `prometheus` has Debian's Prometheus. The
# target `grafana` only serves a page for the health check.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm


FROM ${PYTHON_IMAGE} AS prometheus
RUN apt-get update \
    && apt-get install --yes --no-install-recommends prometheus wget \
    && rm -rf /var/lib/apt/lists/* /etc/prometheus \
    && install --directory --owner=65534 --group=65534 /prometheus
USER 65534:65534
WORKDIR /prometheus
EXPOSE 9090
ENTRYPOINT ["prometheus"]


FROM prometheus AS grafana
USER 0:0
RUN install --directory --owner=472 --group=0 /var/lib/grafana /usr/share/grafana/public/api \
    && touch /usr/share/grafana/public/api/health
USER 472:0
WORKDIR /usr/share/grafana
EXPOSE 3000
ENTRYPOINT ["python", "-m", "http.server", "3000", "--directory", "public"]
