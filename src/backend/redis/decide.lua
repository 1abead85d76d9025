-- Applies a decision: `decide` of lifecycle/decision_rules.rs. In the same step it writes the audit
-- entry and the outbox entry that resumes the task, and publishes the decision.
-- KEYS[1] the decision record
-- KEYS[2] the outbox
-- KEYS[3] the audit stream
-- ARGV    approval id, decision id, choice, decider, digest, edited, decision document, notification
--         channel, approximate limit of audit entries, retention after the deadline in seconds,
--         digest of the edited arguments, nonce of the request that the decider saw ('': not given),
--         1 for a policy that counts in a quorum, approximate limit of refused attempts
-- Returns the result and its details; for an applied decision also the message to send.
local SUSPENSION = 'cs:park:{cs}:'
local id, decision, choice, by, digest = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now = now_in_ms()

local fields = { 'digest', 'quorum', 'requester', 'self', 'approvers', 'editable', 'task',
  'nonce' }
local request = redis.call('HMGET', REQUEST .. id, unpack(fields))
if not request[1] then
  return { 'unknown' }
end
local state, at, is_same = status(id, now)
if not is_same then
  redis.call('DEL', KEYS[1])
end
local record = redis.call('HMGET', KEYS[1], 'decision', 'by', 'vote:' .. by, 'votes')
if record[1] == decision or record[3] == decision then
  return { 'replayed' }
end
local function refused(result)
  return refuse(result, choice, id, request[7], by, ARGV[14])
end
if state == 'withdraw' then
  return refused({ 'withdrawn' })
elseif state == 'approve' or state == 'reject' then
  return refused({ 'decided', record[2], whole(at), state })
elseif state == 'expired' then
  return refused({ 'expired', whole(at) })
elseif digest ~= request[1] or (ARGV[12] ~= '' and ARGV[12] ~= (request[8] or '')) then
  return refused({ 'digest' })
end

local quorum = tonumber(request[2])
local is_named, is_requester = roles(request[3], request[5], by)
local is_policy = string.sub(by, 1, 7) == 'policy:'
local is_own = choice == 'approve' and is_requester and request[4] ~= '1'
local is_no_person = choice == 'approve' and is_policy and quorum > 1 and ARGV[13] ~= '1'
local is_refused_edit = ARGV[6] == '1' and not (request[6] == '1' and quorum == 1)
if not (choice == 'withdraw' and is_requester)
  and (not is_named or is_own or is_no_person or is_refused_edit) then
  return refused({ 'forbidden' })
end

local audit = { 'XADD', KEYS[3], 'MAXLEN', '~', ARGV[9], '*', 'what', choice, 'approval', id,
  'task', request[7] or '', 'by', by, 'digest', digest, 'decision', ARGV[7] }
if ARGV[11] ~= '' then
  audit[#audit + 1], audit[#audit + 2] = 'edited_digest', ARGV[11]
end
if not is_same then
  start_record(id)
end
keep(id, at, now, ARGV[10])
if choice == 'approve' then
  local votes = tonumber(record[4] or '0')
  local has_voted = record[3]
  -- All policies share one vote, so a renamed policy cannot vote again.
  local entries = is_policy and redis.call('HGETALL', KEYS[1]) or {}
  for n = 1, #entries, 2 do
    has_voted = has_voted or string.sub(entries[n], 1, 12) == 'vote:policy:'
  end
  if not has_voted then
    votes = votes + 1
    redis.call('HSET', KEYS[1], 'vote:' .. by, decision, 'votes', whole(votes))
    redis.call(unpack(audit))
  end
  if votes < quorum then
    return { 'counted', whole(votes), whole(quorum) }
  end
else
  redis.call(unpack(audit))
end
redis.call('HSET', KEYS[1], 'choice', choice, 'by', by, 'at', whole(now), 'decision', decision,
  'document', ARGV[7])
redis.call('PUBLISH', ARGV[8], id)

local suspension = redis.call('HMGET', SUSPENSION .. (request[7] or ''), 'number', 'queue', 'waits', 'ended')
local waits = ' ' .. (suspension[3] or '') .. ' '
if not suspension[1] or suspension[4] == '1' or not string.find(waits, ' ' .. id .. ' ', 1, true) then
  return { 'applied' }
end
local entry = cjson.encode({ request[7], suspension[1], suspension[2] or '' })
redis.call('ZADD', KEYS[2], whole(now), entry)
return { 'applied', entry }
