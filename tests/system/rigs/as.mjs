// SPDX-License-Identifier: Apache-2.0
// A real authorization server for system tests: npm's oidc-provider, loopback only, everything in memory.
// Prints {"ready":true,"issuer":…,"mtls":…} when it listens.
//
// The package's own certified code: client authentication, DPoP, mTLS, PAR, PKCE, RAR, RFC 9207, device, CIBA, introspection,
// revocation, client_credentials, authorization_code, refresh_token.
// Written here from the RFCs and drafts, and so a peer and no oracle: token exchange (8693, with ID-JAG, identity chaining and
// transaction tokens as requested types), jwt-bearer (7523), and JWT-SVIDs as client assertions.
//
// Variables:
//   CLIENTS       file of clients, as RFC 7591 writes them
//   NODE_MODULES  folder with oidc-provider and jose
//   TLS_KEY, TLS_CERT, TLS_CA   a second listener that asks for client certificates, published as aliases
//   TRUSTED       [{"issuer":…,"jwks_uri" or "jwks":…}] whose tokens are taken as subjects, actors and grants
//   REGISTRATION  the initial access token with which clients register themselves (RFC 7591), or * for everybody
//   SPIFFE        {"jwks": FILE, "clients": {CLIENT_ID: SPIFFE_ID}} that may prove themselves by a JWT-SVID
//   DPOP_NONCE=1  every proof needs the server's nonce
//   WITHOUT_CLIENT_CREDENTIALS=1  the grant type is unknown
//   ACCESS_TTL    seconds that a token lives
//   DEBUG=1       why something was refused, on stderr
//
// Sign-in and consent are automatic (alice, or the login_hint). /_test/device and /_test/ciba are the person's answer, and
// /_test/seen is what came in.
import crypto from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const modules = process.env.NODE_MODULES || path.resolve('node_modules');
const load = (file) => import(pathToFileURL(path.join(modules, file)).href);
const { Provider, errors } = await load('oidc-provider/lib/index.js');
// Deep imports: the package has no `exports` map in 9.x. Pinned by package-lock.json; look here first after an upgrade.
const { default: validateDpop, checkDpopReplay } = await load('oidc-provider/lib/helpers/validate_dpop.js');
const { checkMtlsCert, checkDpopRequired } = await load('oidc-provider/lib/helpers/sender_constraints.js');
const jose = await load('jose/dist/webapi/index.js');

const env = process.env;
const HOST = '127.0.0.1';
const TT = 'urn:ietf:params:oauth:token-type:';
const GT = 'urn:ietf:params:oauth:grant-type:';
const SCOPES = 'tool:read tool:write tool:admin';
const ACCESS_TTL = Number(env.ACCESS_TTL) || 300;
const SPIFFE = JSON.parse(env.SPIFFE || '{"clients":{}}');

// Listen first, on whatever port is free, so that the issuer has its number; requests wait for the handler below.
let handle;
const listen = (server) => new Promise((done) => server.listen(0, HOST, () => done(server.address().port)));
const port = await listen(http.createServer((req, res) => handle(req, res)));
const issuer = `http://${HOST}:${port}`;
let mtls = null;
if (env.TLS_KEY) {
  const tls = {
    key: fs.readFileSync(env.TLS_KEY), cert: fs.readFileSync(env.TLS_CERT),
    ca: env.TLS_CA ? fs.readFileSync(env.TLS_CA) : undefined, requestCert: true, rejectUnauthorized: false,
  };
  mtls = `https://${HOST}:${await listen(https.createServer(tls, (req, res) => handle(req, res)))}`;
}

// ---- keys and trust ----
const ec = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
const rsa = crypto.generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
const jwks = [
  { ...ec.export({ format: 'jwk' }), kid: 'es1', alg: 'ES256', use: 'sig' },
  { ...rsa.export({ format: 'jwk' }), kid: 'rs1', alg: 'RS256', use: 'sig' },
];
const publicOnly = ({ d, p, q, dp, dq, qi, ...rest }) => rest;
const keysets = new Map([[issuer, jose.createLocalJWKSet({ keys: jwks.map(publicOnly) })]]);
for (const t of JSON.parse(env.TRUSTED || '[]')) {
  keysets.set(t.issuer, t.jwks ? jose.createLocalJWKSet(t.jwks) : jose.createRemoteJWKSet(new URL(t.jwks_uri)));
}

async function verified(jwt, options = {}) {
  let iss;
  try { ({ iss } = jose.decodeJwt(jwt)); } catch (cause) { throw new errors.InvalidGrant('not a JWT', { cause }); }
  if (!keysets.has(iss)) throw new errors.InvalidGrant('untrusted issuer');
  try {
    return await jose.jwtVerify(jwt, keysets.get(iss), { issuer: iss, ...options });
  } catch (cause) { throw new errors.InvalidGrant('token verification failed', { cause }); }
}
const signed = (typ, claims, { sub, aud, ttl }) => new jose.SignJWT(claims)
  .setProtectedHeader({ alg: 'ES256', kid: 'es1', typ }).setIssuer(issuer).setSubject(sub).setAudience(aud)
  .setJti(crypto.randomUUID()).setIssuedAt().setExpirationTime(`${ttl}s`).sign(ec);

// A resource named *opaque* gets opaque tokens (introspectable), *forbidden* is refused, all others get ES256 JWTs.
const resourceServer = (r) => ({
  audience: r, scope: SCOPES, accessTokenTTL: ACCESS_TTL,
  ...(r.includes('opaque') ? { accessTokenFormat: 'opaque' } : { accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } } }),
});
const list = (value) => [].concat(value || []);
const actors = new WeakMap(); // request context -> extra claims of the token being minted
const details = (ctx) => ctx.oidc.params.authorization_details && JSON.parse(ctx.oidc.params.authorization_details);

const provider = new Provider(issuer, {
  clients: JSON.parse(fs.readFileSync(env.CLIENTS, 'utf8')),
  jwks: { keys: jwks },
  cookies: { keys: ['rig'] },
  pkce: { required: () => true },
  clientAuthMethods: ['none', 'client_secret_basic', 'client_secret_post', 'private_key_jwt', 'self_signed_tls_client_auth', 'tls_client_auth'],
  scopes: ['openid', 'offline_access', ...SCOPES.split(' ')],
  issueRefreshToken: (ctx, client) => client.grantTypeAllowed('refresh_token'),
  rotateRefreshToken: () => true,
  findAccount: (ctx, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
  extraTokenClaims: (ctx) => (ctx && actors.get(ctx)) || undefined,
  interactions: { url: (ctx, interaction) => `/_auto/${interaction.uid}` },
  discovery: {
    identity_chaining_requested_token_types_supported: [`${TT}id-jag`, `${TT}jwt`],
    authorization_grant_profiles_supported: ['urn:ietf:params:oauth:grant-profile:id-jag'],
    ...(mtls ? {
      mtls_endpoint_aliases: {
        token_endpoint: `${mtls}/token`, introspection_endpoint: `${mtls}/token/introspection`,
        revocation_endpoint: `${mtls}/token/revocation`, pushed_authorization_request_endpoint: `${mtls}/request`,
      },
    } : {}),
  },
  async loadExistingGrant(ctx) {
    const { client, session, params, result } = ctx.oidc;
    const known = result?.consent?.grantId || session.grantIdFor(client.clientId);
    if (known) return provider.Grant.find(known);
    const grant = new provider.Grant({ clientId: client.clientId, accountId: session.accountId });
    grant.addOIDCScope('openid offline_access');
    for (const r of list(params.resource)) grant.addResourceScope(r, SCOPES);
    await grant.save();
    return grant;
  },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: !env.WITHOUT_CLIENT_CREDENTIALS },
    registration: { enabled: !!env.REGISTRATION, initialAccessToken: env.REGISTRATION === '*' ? false : env.REGISTRATION },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true, allowedPolicy: () => true },
    deviceFlow: { enabled: true },
    pushedAuthorizationRequests: { enabled: true },
    userinfo: { enabled: true },
    dPoP: { enabled: true, nonceSecret: crypto.randomBytes(32), requireNonce: () => env.DPOP_NONCE === '1' },
    mTLS: {
      enabled: true, certificateBoundAccessTokens: true, selfSignedTlsClientAuth: true, tlsClientAuth: true,
      getCertificate: (ctx) => ctx.socket.getPeerX509Certificate?.()?.toString(),
      certificateAuthorized: (ctx) => ctx.socket.authorized === true,
      certificateSubjectMatches: (ctx, property, expected) => property === 'tls_client_auth_san_uri'
        && !!ctx.socket.getPeerX509Certificate().subjectAltName?.split(', ').includes(`URI:${expected}`),
    },
    resourceIndicators: {
      enabled: true, useGrantedResource: () => true,
      getResourceServerInfo(ctx, r) {
        if (r.includes('forbidden')) throw new errors.InvalidTarget();
        return resourceServer(r);
      },
    },
    richAuthorizationRequests: {
      enabled: true,
      types: Object.fromEntries(['mcp_tool_call', 'urn:example:calls'].map((type) => [type, {
        validate(ctx, d) { if (!Array.isArray(d.actions)) throw new errors.InvalidAuthorizationDetails('actions required'); },
      }])),
      authorizationDetailsForGrantSource: details,
      authorizationDetailsForAccessToken: (ctx, token, source) => details(ctx) || source?.rar,
      authorizationDetailsForIntrospection: (ctx, token) => token.rar,
    },
    ciba: {
      enabled: true, deliveryModes: ['poll'],
      processLoginHint: (ctx, hint) => hint,
      processLoginHintToken: (ctx, hint) => jose.decodeJwt(hint).sub,
      verifyUserCode() {}, validateBindingMessage() {}, validateRequestContext() {},
      async triggerAuthenticationDevice(ctx, request, { accountId }) {
        if (accountId.startsWith('wait-')) return; // pending until /_test/ciba
        setImmediate(() => answerCiba(request.jti, accountId.startsWith('deny-') ? 'deny' : 'approve').catch(console.error));
      },
    },
  },
});

async function answerCiba(id, answer) {
  const request = await provider.BackchannelAuthenticationRequest.find(id, { ignoreExpiration: true });
  if (answer === 'deny') return provider.backchannelResult(request, new errors.AccessDenied('end-user denied'));
  const grant = new provider.Grant({ clientId: request.clientId, accountId: request.accountId });
  grant.addOIDCScope('openid');
  for (const r of list(request.params?.resource || request.resource)) grant.addResourceScope(r, SCOPES);
  return provider.backchannelResult(request, await grant.save());
}

// The proof on this request, checked like the package checks its own; undefined where there is none.
async function proven(ctx) {
  const proof = await validateDpop(provider, ctx);
  checkDpopRequired(provider, ctx, proof);
  if (proof) await checkDpopReplay(provider, ctx, proof, ctx.oidc.client.clientId);
  return proof;
}

// Mint an access token, sender-constrained when the request came with a proof or a bound certificate.
async function mint(ctx, { sub, resource, scope, act, gty, jkt }) {
  const { client } = ctx.oidc;
  const proof = await proven(ctx);
  if (jkt && proof?.thumbprint !== jkt) throw new errors.InvalidGrant('the grant is bound to another key');
  const cert = checkMtlsCert(provider, ctx);
  if (act) actors.set(ctx, { act });
  const token = new provider.AccessToken({ accountId: sub, client, gty });
  token.resourceServer = new provider.ResourceServer(resource, resourceServer(resource));
  token.scope = scope || undefined;
  if (cert) token.setThumbprint('x5t', cert);
  if (proof) token.setThumbprint('jkt', proof.thumbprint);
  ctx.oidc.entity('AccessToken', token);
  return { access_token: await token.save(), token_type: token.tokenType, expires_in: token.expiration, scope: token.scope };
}

// Who an actor token names: an agent's grant names the agent in `act`, and is good for whoever has the key that it is bound to.
async function acting(ctx, { payload, protectedHeader }) {
  if (protectedHeader.typ !== 'agent-grant+jwt') return payload;
  const proof = await validateDpop(provider, ctx);
  if (!proof || proof.thumbprint !== payload.cnf.jkt) throw new errors.InvalidGrant('the grant is bound to another key');
  return payload.act;
}

// ---- RFC 8693 token exchange ----
provider.registerGrantType(`${GT}token-exchange`, async (ctx) => {
  const { params: p, client } = ctx.oidc;
  if (!p.subject_token || !p.subject_token_type) throw new errors.InvalidRequest('subject_token and subject_token_type required');
  if (!p.actor_token !== !p.actor_token_type) throw new errors.InvalidRequest('actor_token and actor_token_type go together');
  if (![`${TT}access_token`, `${TT}jwt`, `${TT}id_token`].includes(p.subject_token_type)) throw new errors.InvalidRequest('unsupported subject_token_type');
  const { payload: subject } = await verified(p.subject_token);
  if (subject.may_act && subject.may_act.sub !== client.clientId) throw new errors.InvalidGrant('may_act does not name this client');
  const actor = p.actor_token && await acting(ctx, await verified(p.actor_token));
  const isGrant = [`${TT}id-jag`, `${TT}jwt`, `${TT}txn_token`].includes(p.requested_token_type);
  const targets = list((isGrant && p.audience) || p.resource || p.audience); // a grant is for whoever `audience` names
  if (targets.length !== 1) throw new errors.InvalidTarget('exactly one resource or audience');
  const act = actor
    ? { sub: actor.sub, ...(actor.iss !== issuer ? { iss: actor.iss } : {}), ...(subject.act ? { act: subject.act } : {}) }
    : subject.act;
  const held = new Set((subject.scope || SCOPES).split(' '));
  const known = SCOPES.split(' ');
  const asked = (p.scope ? p.scope.split(' ') : [...held]).filter((s) => known.includes(s));
  if (asked.some((s) => !held.has(s))) throw new errors.InvalidScope('scope exceeds subject token', p.scope);
  const scope = asked.join(' ');
  const jwtAnswer = (access_token, type) => {
    ctx.body = { access_token, issued_token_type: TT + type, token_type: 'N_A', expires_in: ACCESS_TTL, scope };
  };
  const common = { scope, ...(act ? { act } : {}) };
  switch (p.requested_token_type) {
    case `${TT}id-jag`: // ID-JAG, first leg: `audience` is the issuer of the other authorization server
    {
      const proof = await proven(ctx);
      return jwtAnswer(await signed('oauth-id-jag+jwt', {
        client_id: client.clientId, ...(p.resource ? { resource: p.resource } : {}), ...(proof ? { cnf: { jkt: proof.thumbprint } } : {}), ...common,
      }, { sub: subject.sub, aud: p.audience, ttl: ACCESS_TTL }), 'id-jag');
    }
    case `${TT}jwt`: // identity chaining: an authorization grant for the other authorization server
      return jwtAnswer(await signed('JWT', { client_id: client.clientId, ...common }, { sub: subject.sub, aud: targets[0], ttl: ACCESS_TTL }), 'jwt');
    case `${TT}txn_token`: // transaction token: `audience` is the trust domain
      return jwtAnswer(await signed('txntoken+jwt', {
        txn: subject.txn || crypto.randomUUID(), req_wl: client.clientId, scope,
        ...(p.request_details ? { tctx: JSON.parse(p.request_details) } : {}), ...(p.request_context ? { rctx: JSON.parse(p.request_context) } : {}),
      }, { sub: subject.sub, aud: targets[0], ttl: Math.min(ACCESS_TTL, 60) }), 'txn_token');
    default:
      ctx.body = { issued_token_type: `${TT}access_token`, ...(await mint(ctx, { sub: subject.sub, resource: targets[0], scope, act, gty: 'token_exchange' })) };
  }
}, ['audience', 'resource', 'scope', 'requested_token_type', 'subject_token', 'subject_token_type', 'actor_token', 'actor_token_type',
  'request_details', 'request_context'], ['audience', 'resource']);

// ---- RFC 7523 jwt-bearer: ID-JAG second leg, and identity-chaining grants, of the issuers in TRUSTED ----
const redeemed = new Set();
provider.registerGrantType(`${GT}jwt-bearer`, async (ctx) => {
  const { params: p, client } = ctx.oidc;
  if (!p.assertion) throw new errors.InvalidRequest('assertion required');
  const { payload, protectedHeader } = await verified(p.assertion, { audience: issuer, requiredClaims: ['sub', 'jti', 'exp', 'client_id'] });
  if (!['oauth-id-jag+jwt', 'JWT'].includes(protectedHeader.typ)) throw new errors.InvalidGrant('unexpected typ');
  if (payload.client_id !== client.clientId) throw new errors.InvalidGrant('client_id mismatch');
  if (redeemed.has(payload.jti)) throw new errors.InvalidGrant('assertion replay');
  redeemed.add(payload.jti);
  const resource = payload.resource || p.resource || `${issuer}/api`;
  ctx.body = await mint(ctx, { sub: payload.sub, resource, scope: payload.scope, act: payload.act, gty: 'jwt_bearer', jkt: payload.cnf?.jkt });
}, ['assertion', 'scope', 'resource']);

// ---- automatic login and consent, and the buttons that a person would press ----
async function autoInteract(ctx) {
  const d = await provider.interactionDetails(ctx.req, ctx.res);
  let result;
  if (d.prompt.name === 'login') {
    result = { login: { accountId: d.params.login_hint || 'alice' } };
  } else {
    const grant = (d.grantId && await provider.Grant.find(d.grantId))
      || new provider.Grant({ accountId: d.session.accountId, clientId: d.params.client_id });
    const missing = d.prompt.details;
    if (missing.missingOIDCScope) grant.addOIDCScope(missing.missingOIDCScope.join(' '));
    for (const [r, scopes] of Object.entries(missing.missingResourceScopes || {})) grant.addResourceScope(r, scopes.join(' '));
    for (const detail of missing.rar || []) grant.addRar(detail);
    result = { consent: { grantId: await grant.save() } };
  }
  await provider.interactionFinished(ctx.req, ctx.res, result, { mergeWithLastSubmission: d.prompt.name !== 'login' });
  ctx.respond = false;
}

async function answerDevice(query) {
  const userCode = query.get('user_code').replace(/[^a-zA-Z0-9]/g, '').toUpperCase();
  const code = await provider.DeviceCode.findByUserCode(userCode, { ignoreExpiration: true });
  if (query.get('do') === 'deny') {
    Object.assign(code, { error: 'access_denied', errorDescription: 'denied' });
  } else {
    const grant = new provider.Grant({ clientId: code.clientId, accountId: 'alice' });
    grant.addOIDCScope('openid offline_access');
    for (const r of list(code.params.resource)) grant.addResourceScope(r, SCOPES);
    Object.assign(code, {
      accountId: 'alice', grantId: await grant.save(), scope: code.params.scope, authTime: Math.floor(Date.now() / 1000),
      resource: code.params.resource, claims: {},
    });
  }
  await code.save();
}

// ---- JWT-SVIDs as client assertions (draft-ietf-oauth-spiffe-client-auth): checked, then the client's secret stands in ----
async function spiffeClient(ctx) {
  const form = Object.fromEntries(new URLSearchParams(Buffer.concat(await ctx.req.toArray()).toString()));
  ctx.req.body = form;
  if (form.client_assertion_type !== 'urn:ietf:params:oauth:client-assertion-type:jwt-spiffe') return true;
  const { keys } = JSON.parse(fs.readFileSync(SPIFFE.jwks, 'utf8'));
  const jwks = jose.createLocalJWKSet({ keys: keys.map(({ use, ...key }) => key) });
  const expected = { audience: issuer, subject: SPIFFE.clients[form.client_id] };
  const svid = await jose.jwtVerify(form.client_assertion, jwks, expected).catch(() => null);
  if (!svid) return false;
  const { client_assertion, client_assertion_type, ...rest } = form;
  ctx.req.body = { ...rest, client_secret: (await provider.Client.find(form.client_id)).clientSecret };
  seen.push({ path: '/svid', form: svid.payload });
  return true;
}

const seen = []; // what came in, and how it went
provider.use(async (ctx, next) => {
  const { pathname, searchParams: query } = new URL(ctx.url, issuer);
  if (pathname.startsWith('/_auto/')) return autoInteract(ctx);
  if (pathname === '/_test/ciba') { await answerCiba(query.get('id'), query.get('do')); ctx.body = 'ok'; return; }
  if (pathname === '/_test/device') { await answerDevice(query); ctx.body = 'ok'; return; }
  if (pathname === '/_test/seen') { ctx.body = seen; return; }
  if (pathname === '/token' && SPIFFE.jwks && !await spiffeClient(ctx)) {
    Object.assign(ctx, { status: 401, body: { error: 'invalid_client' } });
    return;
  }
  await next();
  if (['/device/auth', '/backchannel'].includes(pathname) && ctx.status === 200) ctx.body = { ...ctx.body, interval: 1 };
  seen.push({ path: pathname, form: ctx.oidc?.body, dpop: ctx.get('dpop'), status: ctx.status });
});

if (env.DEBUG) {
  for (const name of ['grant', 'authorization', 'introspection', 'revocation', 'backchannel_authentication', 'device_authorization', 'pushed_authorization_request']) {
    provider.on(`${name}.error`, (ctx, e) => console.error(name, e.message, e.error_description || '', e.error_detail || e.cause?.message || ''));
  }
  provider.on('server_error', (ctx, e) => console.error(e.stack));
}
handle = provider.callback();
console.log(JSON.stringify({ ready: true, issuer, mtls }));
