-- ARGV: job, n, digest, chunks, credit, limit, ring_ms, kind, names, models, spaces, token, of a batch of copies the number of the last batch that has an original (or empty), key of its text if that is here, too
-- Opens batch `job.n` if n is the job's next number and the budget has room; a repeat counts nothing twice.
local job, n, digest = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local credit, limit, ring = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local key = job_key(job)
local state = redis.call('HGET', key, 'state')
if ARGV[14] ~= '' and redis.call('EXISTS', ARGV[14]) == 0 then return { 'unwritten' } end
if not state then return { 'gone' } end
local next_n = tonumber(redis.call('HGET', key, 'next'))
if n == next_n - 1 and redis.call('HGET', key, 'last') == digest then
  return { 'already', redis.call('HGET', batch_key(job .. '.' .. n), 'text') or '' }
end
if state ~= 'open' then return { 'closed', state } end
if n ~= next_n then return { 'gap', next_n } end
local used = tonumber(redis.call('GET', P .. 'credit') or '0')
if used > 0 and used + credit > limit then return { 'full', used } end
local batch, now = job .. '.' .. n, now_ms()
local models, spaces = cjson.decode(ARGV[10]), cjson.decode(ARGV[11])
redis.call('HSET', batch_key(batch), 'job', job, 'chunks', ARGV[4], 'credit', credit, 'kind', ARGV[8],
  'names', ARGV[9], 'models', ARGV[10], 'wait', #models, 'created', now, 'text', ARGV[12])
for i, model in ipairs(models) do
  redis.call('HSET', batch_key(batch), 'space:' .. model, spaces[i])
  redis.call('ZADD', steps_key('embed.' .. model), now + ring, batch)
  redis.call('SADD', P .. 'queues', 'embed.' .. model)
end
redis.call('SADD', P .. 'queues', 'aggregate')
if #models == 0 then redis.call('ZADD', steps_key('aggregate'), now + ring, batch) end
redis.call('SADD', open_key(job), batch)
redis.call('INCRBY', P .. 'credit', credit)
redis.call('HSET', key, 'next', n + 1, 'last', digest)
redis.call('HINCRBY', key, 'staged', ARGV[4])
redis.call('HINCRBY', key, 'batches', 1)
if ARGV[13] ~= '' and wait_for(job .. '.' .. ARGV[13], batch) then return { 'waits' } end
return { 'opened' }
